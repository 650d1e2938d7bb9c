"""What a trainer must know of a mixing method before it loads one: no numpy here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Method:
    """What a configuration, a log or a replay asks of a mixing method."""

    learns: bool = True
    """Whether losses move its weights."""
    signal: Literal["training", "held_out"] = "training"
    """What it learns from: training losses of the domains that a step drew, or losses on held-out
    data of every domain, which the trainer has to measure."""
    settings: tuple[str, ...] = ()
    """Options that a trainer's configuration may set; the others keep their defaults."""


METHODS: dict[str, Method] = {
    "smoothed_mean": Method(settings=("smoothing_factor",)),
    "odm_paper": Method(settings=("smoothing_factor",)),
    "exp3": Method(),
    "ema": Method(),
    "static": Method(learns=False),
    "naive_validation": Method(signal="held_out"),
}
"""One row per method; its class is registered under the name by the file ``mixers/<name>.py``."""
