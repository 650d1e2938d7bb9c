"""Constant weights: the plain multi-domain run, as the same object as every other method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..json_data import Check, SchemaError, list_of, number
from ..simplex import BoolArray, FloatArray, normalize
from .base import Mixer, State, register


@register("static")
@dataclass(frozen=True)
class Static(Mixer):
    """Keeps the initial weights, normalised, whatever the losses are. Works with one domain."""

    min_domains: ClassVar[int] = 1

    def _init(self, weights: FloatArray) -> State:
        return {"weights": weights.tolist()}

    def state_fields(self, initial: FloatArray, step: int) -> dict[str, Check]:
        """As in `Mixer`."""
        return {"weights": list_of(number(0), initial.size)}

    def proposals(self, state: Mapping[str, Any], initial: FloatArray) -> list[FloatArray]:
        """As in `Mixer`."""
        if not np.array_equal(state["weights"], initial):
            raise SchemaError("mixer.weights: are not the initial_weights; the state is torn")
        return [normalize(initial)]

    def _update(
        self,
        state: State,
        step: int,
        losses: FloatArray,
        present: BoolArray,
        weights_used: FloatArray,
    ) -> tuple[State, FloatArray]:
        return state, normalize(np.array(state["weights"], dtype=np.float64))
