"""What a controller decided after a step, and why."""

from __future__ import annotations

from typing import Any, NamedTuple

from .simplex import FloatArray


class Decision(NamedTuple):
    """A controller's decision after a step or at the start (step 0); arrays are read-only, (K,)."""

    step: int
    updated: bool
    """Whether the mixer was asked for new weights."""
    weights_before: FloatArray
    weights_after: FloatArray
    """Probabilities of the next draw."""
    proposal: FloatArray
    """The mixer's weights before constraints."""
    losses: FloatArray | None
    """Mean losses in nats, nan for absent domains; None before the first step."""
    constraints: dict[str, Any]
    """The effect of each limit, see ``apply_constraints``."""

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON data; a loss that is absent is null."""
        losses = None if self.losses is None else self.losses.tolist()
        return {
            "step": self.step,
            "updated": self.updated,
            "weights_before": self.weights_before.tolist(),
            "weights_after": self.weights_after.tolist(),
            "proposal": self.proposal.tolist(),
            "losses": losses and [None if loss != loss else loss for loss in losses],
            "constraints": self.constraints,
        }


def make_decision(
    step: int,
    weights: FloatArray,
    *,
    proposal: FloatArray,
    effects: dict[str, Any],
    before: FloatArray | None = None,
    losses: FloatArray | None = None,
    updated: bool = False,
) -> Decision:
    """A decision with read-only arrays; without an update the weights stay the same."""
    for array in (weights, proposal, losses):
        if array is not None:
            array.flags.writeable = False
    return Decision(
        step, updated, weights if before is None else before, weights, proposal, losses, effects
    )
