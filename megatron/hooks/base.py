"""The interface of hooks, and the report of one step that they read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megatron.engine.state import TrainState
from odm import Draw, Signal

__all__ = ["Hook", "StepReport"]


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One optimizer step, reduced over all ranks; the same on every rank."""

    draw: Draw
    weights: np.ndarray
    """Weights that the batch was drawn with, shape (K,)."""
    signal: Signal
    """Per-domain loss sums and token counts of the batch."""
    lm_loss: float
    """Mean over the tokens of the global batch that count, in nats; 0 if none counts."""
    grad_norm: float | None
    learning_rate: float
    loss_scale: float | None
    skipped: bool
    seconds: float
    """Wall time since the previous report."""
    step_seconds: float
    """Wall time of the step alone, without the hooks that ran since the previous report."""


class Hook:
    """Called on every rank at the start, before and after each step, and at the end.

    Hooks are called in the order of their list.
    """

    def at_start(self, state: TrainState) -> None:
        """Runs once before the loop; ``state`` is that of the checkpoint, or of iteration 0."""

    def before_step(self, step: int) -> None:
        """Runs before the optimizer step of iteration ``step``."""

    def after_step(self, state: TrainState, report: StepReport) -> None:
        """Runs after the optimizer step and the update of the mixture."""

    def at_end(self, state: TrainState) -> None:
        """Runs once after the loop, also if a stop was requested."""
