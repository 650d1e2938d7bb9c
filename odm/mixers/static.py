"""Constant weights: plain training on several domains, with the interface of all methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..json_data import Check, SchemaError, list_of, number
from ..observation import Observation
from ..simplex import FloatArray, normalize
from .base import Mixer, State, register


@register("static")
@dataclass(frozen=True)
class Static(Mixer):
    """Keeps the normalised initial weights, whatever the losses are. Works with one domain too."""

    min_domains: ClassVar[int] = 1

    def _init(self, weights: FloatArray) -> State:
        return {"weights": weights.tolist()}

    def state_fields(self, initial: FloatArray, step: int) -> dict[str, Check]:
        """As in `Mixer`."""
        return {"weights": list_of(number(0), initial.size)}

    def proposals(self, state: Mapping[str, Any], initial: FloatArray) -> list[FloatArray]:
        """As in `Mixer`."""
        if not np.array_equal(state["weights"], initial):
            raise SchemaError("mixer.weights: differ from initial_weights; the state is damaged")
        return [normalize(initial)]

    def _update(self, state: State, observation: Observation) -> tuple[State, FloatArray]:
        return state, normalize(np.array(state["weights"], dtype=np.float64))
