"""Weights that are moving averages of the losses themselves (released research code)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..json_data import Check, list_of, number
from ..observation import Observation
from ..simplex import FloatArray, check_weights, normalize
from .base import Mixer, State, register


@register("ema")
@dataclass(frozen=True)
class Ema(Mixer):
    """``w_i = c * loss_i + (1 - c) * w_i`` with ``c = 2 / (1 + t)``; probabilities are w / sum(w).

    The average starts at the raw initial weights. c decreases with the global step, so after a long
    warm-up the weights hardly change. There is no floor; add one as a constraint.

    Source: ``EMAWeightUpdater`` of the released code of arXiv:2312.02406.
    """

    estimate = "weights"

    @property
    def curve(self) -> str:
        """As in `Mixer`."""
        return "weights"

    def _init(self, weights: FloatArray) -> State:
        return {"weights": weights.tolist()}

    def state_fields(self, initial: FloatArray, step: int) -> dict[str, Check]:
        """As in `Mixer`."""
        return {"weights": list_of(number(0), initial.size)}

    def proposals(self, state: Mapping[str, Any], initial: FloatArray) -> list[FloatArray]:
        """As in `Mixer`."""
        where = "mixer.weights"
        return [normalize(check_weights(state["weights"], initial.size, where=where))]

    def _update(self, state: State, observation: Observation) -> tuple[State, FloatArray]:
        step, losses = observation.step, observation.losses
        if (losses < 0).any():
            wrong = int(np.flatnonzero(losses < 0)[0])
            raise ValueError(
                f"{self.name}: loss of domain {wrong} is {losses[wrong]}; the losses become "
                "weights, so they must not be negative"
            )
        coefficient = 2.0 / (1 + step)
        old = np.array(state["weights"], dtype=np.float64)
        new = np.where(observation.present, coefficient * losses + (1.0 - coefficient) * old, old)
        where = f"{self.name}: averages after step {step}"
        return {"weights": new.tolist()}, normalize(check_weights(new, new.size, where=where))
