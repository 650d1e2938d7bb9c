"""What a trainer must know about a mixing method before it imports one; does not import numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Method:
    """Facts about a mixing method that configuration, log and replay need."""

    learns: bool = True
    """Whether losses change its weights."""
    signal: Literal["training", "held_out"] = "training"
    """The losses that it learns from: training losses of the domains in a step, or losses on
    held-out data of every domain, which the trainer has to measure."""
    follows_steps: bool = False
    """Whether its weights change with the steps alone, whatever the losses are."""
    every_step: bool = False
    """Whether it is given the losses of every step, also of steps after which its weights stay the
    same: those of the warm-up, and between two updates. Other methods never see these losses."""
    uses_length: bool = False
    """Whether its weights depend on the number of steps of the whole run."""
    settings: tuple[str, ...] = ()
    """Options that a trainer's configuration may set; other options keep their defaults."""


METHODS: dict[str, Method] = {
    "smoothed_mean": Method(settings=("smoothing_factor",)),
    "odm_paper": Method(settings=("smoothing_factor",)),
    "exp3": Method(),
    "ema": Method(),
    "learning_curve": Method(
        every_step=True,
        uses_length=True,
        settings=("perplexity_share", "objective_weights", "max_ratio", "exponent"),
    ),
    "static": Method(learns=False),
    "schedule": Method(learns=False, follows_steps=True, settings=("points", "interpolation")),
    "naive_validation": Method(signal="held_out"),
}
"""One row per method; the file ``mixers/<name>.py`` registers its class under this name."""
