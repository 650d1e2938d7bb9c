"""Plans that were drawn before the losses of earlier steps were known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from .simplex import FloatArray, IntArray

_MAX_PLANS = 1024


class _Plan(NamedTuple):
    weights: FloatArray
    """Weights with which it was drawn, shape (K,)."""
    cursors: IntArray
    """Cursors at which it begins, shape (K,)."""


class ReadAhead:
    """Weights and cursors of the plans whose losses have not been observed.

    A trainer that reads ahead draws step t before the losses of step t - 1 are known. A reward that
    is divided by the weight needs the weight of the draw. A saved state must not count such a plan,
    but must contain its weights, so that the same plan is drawn again.

    Args:
        planned: Step -> weights, for the plans that a saved run had drawn ahead.
    """

    def __init__(self, planned: Mapping[int, FloatArray] | None = None) -> None:
        self._planned = dict(planned or {})
        self._drawn: dict[int, _Plan] = {}

    def weights_of(self, step: int, current: FloatArray) -> FloatArray:
        """Weights for the draw of a step: those of the saved run's plan, or the current weights."""
        return self._planned.get(step, current)

    def add(self, step: int, weights: FloatArray, cursors: IntArray) -> None:
        """Stores a plan: the weights with which it was drawn, and the cursors before it."""
        self._drawn[step] = _Plan(weights, cursors)
        if len(self._drawn) > _MAX_PLANS:  # a trainer that never observes
            del self._drawn[next(iter(self._drawn))]

    def complete(self, step: int) -> FloatArray | None:
        """Forgets the plans up to a step; returns the weights of its draw, None without a draw."""
        plan = self._drawn.get(step)
        self._drawn = {later: kept for later, kept in self._drawn.items() if later > step}
        self._planned = {later: kept for later, kept in self._planned.items() if later > step}
        return None if plan is None else plan.weights

    def saved(
        self, cursors: IntArray, completed_step: int | None
    ) -> tuple[IntArray, dict[int, FloatArray]]:
        """What a saved state must contain about the plans.

        Args:
            cursors: Cursors after all plans, shape (K,).
            completed_step: Last trained step; None counts every plan as trained.

        Returns:
            Cursors after the last trained step, and step -> weights of the later plans.
        """
        planned = {step: w for step, w in self._planned.items() if step not in self._drawn}
        if completed_step is not None:
            later = {step: plan for step, plan in self._drawn.items() if step > completed_step}
            cursors = later[min(later)].cursors if later else cursors
            planned.update({step: plan.weights for step, plan in later.items()})
        return cursors, planned
