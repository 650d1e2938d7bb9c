"""Which losses a mixing method learns from: of training, of held-out text, or their difference."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from .held_out import HeldOut
from .json_data import Check, boolean, fields, one_of
from .methods import Method, RewardSource
from .simplex import BoolArray, FloatArray

__all__ = ["Reward", "check_reward"]


@dataclass(frozen=True)
class Reward:
    """Makes the numbers, one per domain, that a mixer takes as its losses.

    ``heldout`` and ``generalization`` change the weights only at steps with a measurement on
    held-out text, except for a method that sees training losses too (`Method.sees_both`). The
    generalization reward is the research code's (arXiv:2312.02406, the loop with
    ``validation_based_reward`` and ``mixed_minibatches``): held-out loss less training loss of the
    domains in the step. It is small and may be negative where a domain is not memorised.

    Raises:
        ValueError: If the source is unknown, or an option does not belong to it.
    """

    source: RewardSource = "train"
    batch_normalized: bool = False
    """Whether generalization rewards of a step are mapped to [0, 1] by their minimum and maximum;
    to 0 if all are equal (the research code divides by 0)."""
    scaled_by_loss_diff: bool = False
    """Whether a generalization reward is multiplied by the decrease of the held-out loss: of the
    same windows since they were measured before (the research code compares two different batches);
    the first one is not."""

    def __post_init__(self) -> None:
        if self.source not in get_args(RewardSource):
            raise ValueError(
                f"reward: must be one of {', '.join(get_args(RewardSource))}, got {self.source!r}"
            )
        if self.source != "generalization" and (self.batch_normalized or self.scaled_by_loss_diff):
            raise ValueError(
                "reward: batch_normalized and scaled_by_loss_diff are only for the source "
                f"generalization, got {self.source}"
            )

    @property
    def needs_held_out(self) -> bool:
        """Whether a measurement on held-out text is needed for an update."""
        return self.source != "train"

    def check_method(self, name: str, method: Method) -> None:
        """Raises a ``ValueError`` if a method cannot learn from this reward."""
        if problem := method.reward_problem(name, self.source):
            raise ValueError(f"reward: {self.source}: {problem}")

    def losses(
        self, losses: FloatArray, present: BoolArray, held_out: HeldOut | None
    ) -> tuple[FloatArray, BoolArray]:
        """The numbers that the mixer learns from.

        Args:
            losses: Mean training losses of a step, nan for absent domains, shape (K,).
            present: Whether the step had tokens of each domain, shape (K,).
            held_out: The measurement after this step; None if there was none.

        Returns:
            Rewards, 0 for absent domains, and whether each domain has one, both of shape (K,).
        """
        if not self.needs_held_out:
            return np.where(present, losses, 0.0), present
        if held_out is None:
            return np.zeros_like(losses), np.zeros_like(present)
        has_loss = ~np.isnan(held_out.mean_loss)
        if self.source == "heldout":
            return np.where(has_loss, held_out.mean_loss, 0.0), has_loss
        has_both = has_loss & present
        gap = np.where(has_both, held_out.mean_loss - losses, 0.0)
        if self.scaled_by_loss_diff:
            gap = gap * np.where(np.isnan(held_out.change), 1.0, -held_out.change)
        if self.batch_normalized and has_both.any():
            low, high = gap[has_both].min(), gap[has_both].max()
            span = high - low if high > low else np.inf
            gap = np.where(has_both, (gap - low) / span, 0.0)
        return gap, has_both

    def options(self) -> dict[str, Any]:
        """Options as JSON data; ``Reward(**options)`` makes the same reward."""
        return dataclasses.asdict(self)


check_reward: Check = fields(
    {"source": one_of(*get_args(RewardSource))},
    {"batch_normalized": boolean, "scaled_by_loss_diff": boolean},
    closed=True,
)
"""Checks what `Reward.options` returned; see `odm.json_data.Check`."""
