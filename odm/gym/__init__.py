"""Worlds of known learning curves, in which mixing methods are compared within a minute.

    python -m odm.gym --mixer smoothed_mean exp3

A world says what loss every domain has after any number of samples of each; most are fitted to 512
public training runs. So the best static mixture is known, and a method can be scored against it.
They show how a method handles noise, saturation, little data and transfer; they do not show which
mixture is best for a model.
"""
