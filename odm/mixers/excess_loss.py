"""The common part of methods that raise domains whose loss is above a given one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ..arguments import check_one_per_domain
from ..json_data import Check, is_number, list_of, number
from ..observation import Observation
from ..simplex import FloatArray, normalize, softmax
from ..wording import shown
from .base import MAX_REWARD, Mixer, State, check_step_size, finite_numbers


class ExcessLossMixer(Mixer):
    """``p_i <- p_i exp(step_size * max(L_i - G_i, 0))``, normalised, then ``(1 - c) p + c / K``.

    G are the given losses, c the smoothing. A domain without a new loss keeps its last excess. The
    limits of a controller do not enter p.
    """

    estimate = "excess_loss"
    given: ClassVar[str] = ""
    """The option with the given losses."""

    step_size: float
    smoothing: float

    def __post_init__(self) -> None:
        losses = finite_numbers(self.name, self.given, getattr(self, self.given))
        object.__setattr__(self, self.given, losses)
        check_step_size(self.name, self.step_size)
        if not is_number(self.smoothing) or not 0 <= self.smoothing < 1:
            raise ValueError(
                f"{self.name}: smoothing must be in [0, 1), got {shown(self.smoothing)}"
            )

    def _init(self, weights: FloatArray) -> State:
        given = getattr(self, self.given)
        check_one_per_domain(f"{self.name}: {self.given}", len(given), weights.size)
        return {"weights": normalize(weights).tolist(), "excess_loss": [0.0] * weights.size}

    def state_fields(self, initial: FloatArray, step: int) -> dict[str, Check]:
        """As in `Mixer`."""
        return {
            "weights": list_of(number(0, 1 + 1e-9), initial.size),
            "excess_loss": list_of(number(0), initial.size),
        }

    def proposals(self, state: Mapping[str, Any], initial: FloatArray) -> list[FloatArray]:
        """As in `Mixer`."""
        return [np.array(state["weights"], dtype=np.float64)]

    def _losses(self, observation: Observation) -> FloatArray:
        """Losses in nats that are compared with the given ones, shape (K,); nan where unknown."""
        return np.where(observation.present, observation.losses, np.nan)

    def _update(self, state: State, observation: Observation) -> tuple[State, FloatArray]:
        losses = self._losses(observation)
        excess = np.maximum(losses - np.array(getattr(self, self.given), dtype=np.float64), 0.0)
        excess = np.where(np.isnan(losses), state["excess_loss"], excess)
        with np.errstate(divide="ignore", over="ignore"):  # a weight of 0 stays 0
            logits = np.log(state["weights"]) + np.minimum(self.step_size * excess, MAX_REWARD)
        weights = (1.0 - self.smoothing) * softmax(logits) + self.smoothing / excess.size
        weights = normalize(weights)
        return {"weights": weights.tolist(), "excess_loss": excess.tolist()}, weights
