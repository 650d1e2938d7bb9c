"""What a mixer may know about one training step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .signal import Signal
from .simplex import BoolArray, FloatArray

if TYPE_CHECKING:
    from .held_out import HeldOut


@dataclass(frozen=True, eq=False)
class Observation:
    """What one step has shown, checked; arrays have shape (K,) and must not be changed.

    The caller of `Mixer.update_checked` answers for the checks: losses are finite, weights are
    probabilities.
    """

    step: int
    """Optimizer step, counted from 1."""
    losses: FloatArray
    """Mean losses in nats per token, 0 for absent domains: of training, or what else the
    controller's `Reward` makes the mixer learn from."""
    present: BoolArray
    """Whether each domain has a loss."""
    weights_used: FloatArray
    """Probabilities with which the step's samples were drawn."""
    signal: Signal | None = None
    """The sums behind the losses; None if the caller knows only means, or they are held out."""
    held_out: HeldOut | None = None
    """What is behind losses on held-out data; None if the losses are others, or in a step that
    measured none."""
    total_steps: int | None = None
    """Steps of the whole run; None if that is not known."""

    @property
    def counts(self) -> FloatArray:
        """How much the mean loss of each domain tells, 0 for absent domains.

        Tokens; without a signal the expected share of the draw, times the number of domains.
        """
        if self.held_out is not None:
            return np.where(self.present, np.nan_to_num(self.held_out.token_count, nan=1.0), 0.0)
        if self.signal is not None:
            return self.signal.token_count
        return self.present * self.weights_used * self.losses.size

    @property
    def log_step(self) -> FloatArray:
        """Logarithm of the step that each loss belongs to, shape (K,), nan where it has none.

        For held-out losses the mean over the steps at which their windows were measured.
        """
        if self.held_out is not None:
            return self.held_out.log_step
        return np.full(self.losses.size, math.log(self.step))
