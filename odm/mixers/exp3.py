"""EXP3 with cumulative importance-weighted losses, as in the released research code."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..json_data import is_number
from ..observation import Observation
from ..simplex import FloatArray, exploration_rate
from ..wording import shown
from .base import MAX_REWARD, State, register
from .exploring import ExploringMixer


@register("exp3")
@dataclass(frozen=True)
class Exp3(ExploringMixer):
    """Cumulative reward C of (loss / scale) / weight, and a softmax of it plus a floor.

    ``p = eps_t + (1 - K eps_t) softmax(eps_{t-1} C)``; ``eps_{t-1}`` is that of the previous
    update. C changes only for domains in the step, once per step however many samples they had.

    Source: the released research code of arXiv:2312.02406, which fixes the scale at 10.
    """

    estimate = "cumulative_estimated_reward"

    reward_scale: float = 10.0
    """Losses are divided by this number (nats) before they are added."""

    def __post_init__(self) -> None:
        if not is_number(self.reward_scale) or self.reward_scale <= 0:
            raise ValueError(
                f"{self.name}: reward_scale must be > 0, got {shown(self.reward_scale)}"
            )

    def _reward_range(self, step: int) -> tuple[float, float]:
        return -MAX_REWARD * max(1, step), MAX_REWARD * max(1, step)

    def _update(self, state: State, observation: Observation) -> tuple[State, FloatArray]:
        with np.errstate(over="ignore"):  # what overflows is bounded below
            scaled = observation.losses / self.reward_scale
        gain = self._over_weights(scaled, observation)
        reward = np.array(state["cumulative_estimated_reward"], dtype=np.float64) + gain
        return self._mixed(reward, exploration_rate(observation.step, reward.size), state["eps"])
