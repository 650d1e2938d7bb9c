"""What a mixer may know about one training step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .signal import Signal
from .simplex import BoolArray, FloatArray, IntArray

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
    """Losses on held-out data, if the weights follow them; None in a step that measured none."""
    total_steps: int | None = None
    """Steps of the whole run; None if that is not known."""
    samples_read: IntArray | None = None
    """Samples of each domain that had been drawn after the step, since the start of the run; None
    if that is not known or the mixer does not depend on it."""

    @property
    def token_shares(self) -> FloatArray:
        """Share of each domain in the tokens of the step, shape (K,); 0 for absent domains.

        Without a signal, the shares that the weights of the draw lead to expect.
        """
        counts = self.present * self.weights_used
        if self.signal is not None:
            counts = self.signal.token_count
        total = counts.sum()
        return counts / total if total > 0 else counts
