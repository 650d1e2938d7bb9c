"""Measurements and checks of whole programs; each module is a command that prints numbers."""
