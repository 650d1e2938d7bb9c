"""EXP3 with cumulative importance-weighted losses, as in the released research code."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..simplex import BoolArray, FloatArray, exploration_rate, mix_with_uniform, softmax
from .base import Mixer, State, register


@register("exp3")
@dataclass(frozen=True)
class Exp3(Mixer):
    """Cumulative reward C of (loss / scale) / weight, and a softmax of it plus a floor.

    ``p = eps_t + (1 - K eps_t) softmax(eps_{t-1} C)``; ``eps_{t-1}`` is that of the update before.
    C moves only for domains that the step saw, once a step however many draws they had.

    Source: the released research code of arXiv:2312.02406, which fixes the scale at 10.
    """

    estimate = "cumulative_estimated_reward"

    reward_scale: float = 10.0
    """Losses are divided by this number (nats) before they are added."""

    def __post_init__(self) -> None:
        if not (self.reward_scale > 0 and np.isfinite(self.reward_scale)):
            raise ValueError(f"{self.name}: reward_scale must be > 0, got {self.reward_scale}")

    def _init(self, weights: FloatArray) -> State:
        return {
            "eps": 1.0 / weights.size,
            "prev_eps": None,
            "cumulative_estimated_reward": [0.0] * weights.size,
        }

    def _update(
        self,
        state: State,
        step: int,
        losses: FloatArray,
        present: BoolArray,
        weights_used: FloatArray,
    ) -> tuple[State, FloatArray]:
        gain = self._over_weights(losses / self.reward_scale, present, weights_used)
        reward = np.array(state["cumulative_estimated_reward"], dtype=np.float64) + gain
        return gibbs_step(state, step, reward)


def gibbs_step(state: State, step: int, reward: FloatArray) -> tuple[State, FloatArray]:
    """Moves eps one update on and mixes by a softmax of cumulative rewards, shape (K,)."""
    previous, eps = state["eps"], exploration_rate(step, reward.size)
    following = {
        "eps": eps,
        "prev_eps": previous,
        "cumulative_estimated_reward": reward.tolist(),
    }
    return following, mix_with_uniform(softmax(previous * reward), eps)
