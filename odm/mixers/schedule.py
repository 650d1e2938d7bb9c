"""Weights that change with the steps by a given schedule, whatever the losses are."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np

from ..json_data import is_number
from ..observation import Observation
from ..simplex import FloatArray, check_weights, normalize
from ..wording import shown
from .base import State, register
from .static import Static

Points: TypeAlias = Sequence[tuple[float, Sequence[float]]]

_INTERPOLATIONS = ("constant", "linear")


@register("schedule")
@dataclass(frozen=True)
class Schedule(Static):
    """Piecewise constant or linear weights; without points it is ``static``.

    For mixtures that were found before the run, also those of several stages. The weights are a
    function of the step alone, so a resumed run continues the schedule exactly.
    """

    points: Points = ()
    """Steps before the point (0 for the first one, ascending, not necessarily whole) and raw
    weights, one per domain."""
    interpolation: str = "constant"
    """``constant`` keeps the weights of a point until the next one. ``linear`` moves the shares on
    a straight line between them. After the last point its weights are kept."""

    def __post_init__(self) -> None:
        if not isinstance(self.interpolation, str) or self.interpolation not in _INTERPOLATIONS:
            raise ValueError(
                f"schedule: interpolation must be one of {', '.join(_INTERPOLATIONS)}, got "
                f"{shown(self.interpolation)}"
            )
        if not isinstance(self.points, (list, tuple)) or not all(map(_is_point, self.points)):
            raise ValueError(
                "schedule: points must be a list of steps with a weight per domain, such as "
                f"[[0, [1, 1]], [100, [2, 1]]], got {shown(self.points)}"
            )
        points = tuple((step, tuple(map(float, weights))) for step, weights in self.points)
        steps = [step for step, _ in points]
        if steps[:1] not in ([], [0]) or any(a >= b for a, b in pairwise(steps)):
            raise ValueError(
                f"schedule: points must be at ascending steps from 0 on, got {shown(steps)}"
            )
        for step, weights in points:
            check_weights(weights, len(points[0][1]), where=f"schedule: weights at step {step}")
        object.__setattr__(self, "points", points)

    def options(self) -> dict[str, Any]:
        """As in `Mixer`."""
        points = [[step, list(weights)] for step, weights in self.points]
        return {"points": points, "interpolation": self.interpolation}

    def weights_at(self, step: float, initial: FloatArray) -> FloatArray:
        """As in `Mixer`."""
        if not self.points:
            return normalize(initial)
        number = bisect_right([at for at, _ in self.points], step) - 1
        at, weights = self.points[number]
        share = normalize(np.array(weights))
        if self.interpolation == "constant" or number + 1 == len(self.points):
            return share
        later, weights = self.points[number + 1]
        fraction = (step - at) / (later - at)
        return normalize((1.0 - fraction) * share + fraction * normalize(np.array(weights)))

    def proposals(self, state: Mapping[str, Any], initial: FloatArray) -> list[FloatArray]:
        """As in `Mixer`."""
        known = super().proposals(state, initial)
        return [] if self.points else known

    def _init(self, weights: FloatArray) -> State:
        for _, given in self.points[:1]:
            check_weights(given, weights.size, where="schedule: points")
        return super()._init(weights)

    def _update(self, state: State, observation: Observation) -> tuple[State, FloatArray]:
        initial = np.array(state["weights"], dtype=np.float64)
        return state, self.weights_at(observation.step, initial)


def _is_point(point: Any) -> bool:
    """Whether it is a pair of a number and a list of numbers."""
    if not isinstance(point, (list, tuple)) or len(point) != 2 or not is_number(point[0]):
        return False
    weights = point[1]
    return isinstance(weights, (list, tuple, np.ndarray)) and all(map(is_number, weights))
