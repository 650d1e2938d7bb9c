"""The learning rate over time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class NeoXArgsLRScheduler:
    """Warm-up, decay and what a checkpoint may say about them."""

    lr_decay_style: Literal["constant", "linear", "cosine", "exponential"] = "linear"
    """Shape of the decay after warm-up."""

    lr_decay_iters: int | None = None
    """Iterations of the whole schedule. Not set: `train_iters`."""

    lr_decay_fraction: float | None = None
    """`lr_decay_iters` as a share of `train_iters`, in (0, 1]. Set one of the two."""

    min_lr: float = 0.0
    """The decay stops here."""

    warmup: float = 0.01
    """Share of the schedule during which the rate grows linearly from 0, in [0, 1]."""

    override_lr_scheduler: bool = False
    """On resume, takes the schedule of the configuration without a word. By default it is taken
    too, with a warning where it is another than the checkpoint's."""

    use_checkpoint_lr_scheduler: bool = False
    """On resume, takes the schedule of the checkpoint (`lr`, `min_lr`, `warmup`, `lr_decay_style`
    and the length) and ignores the configuration's."""
