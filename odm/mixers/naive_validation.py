"""Softmax of cumulative, min-max normalised validation losses (released research code)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..observation import Observation
from ..simplex import FloatArray, exploration_rate
from .base import State, register
from .exploring import ExploringMixer


@register("naive_validation")
@dataclass(frozen=True)
class NaiveValidation(ExploringMixer):
    """Adds (loss - min) / (max - min) to a cumulative reward; the rest is as in EXP3.

    It needs losses on held-out data of **every** domain at every update, not training losses; a
    missing domain is an error. If all losses are equal, nothing is added.

    Source: ``NaiveValidationWeightUpdater`` of the released code of arXiv:2312.02406.
    """

    estimate = "cumulative_estimated_reward"

    def _reward_range(self, step: int) -> tuple[float, float]:
        return 0.0, float(step)  # at most 1 per update

    def _update(self, state: State, observation: Observation) -> tuple[State, FloatArray]:
        step, losses, present = observation.step, observation.losses, observation.present
        if not present.all():
            missing = int(np.flatnonzero(~present)[0])
            raise ValueError(
                f"{self.name}: domain {missing} has no validation loss at step {step}; "
                "evaluate every domain before an update"
            )
        low, high = losses.min(), losses.max()
        gain = (losses - low) / (high - low) if high > low else np.zeros_like(losses)
        reward = np.array(state["cumulative_estimated_reward"], dtype=np.float64) + gain
        return self._mixed(reward, exploration_rate(step, reward.size), state["eps"])
