"""Constant weights: the plain multi-domain run, as the same object as every other method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..simplex import BoolArray, FloatArray, normalize
from .base import Mixer, State, register


@register("static")
@dataclass(frozen=True)
class Static(Mixer):
    """Keeps the initial weights, normalised, whatever the losses are. Works with one domain."""

    min_domains: ClassVar[int] = 1

    def _init(self, weights: FloatArray) -> State:
        return {"weights": weights.tolist()}

    def _update(
        self,
        state: State,
        step: int,
        losses: FloatArray,
        present: BoolArray,
        weights_used: FloatArray,
    ) -> tuple[State, FloatArray]:
        return state, normalize(np.array(state["weights"], dtype=np.float64))
