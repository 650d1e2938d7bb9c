"""Online data mixing as published in its paper: a softmax of importance-weighted mean losses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..observation import Observation
from ..simplex import FloatArray, exploration_rate
from .base import MAX_REWARD, State, check_smoothing_factor, register
from .exploring import ExploringMixer


@register("odm_paper")
@dataclass(frozen=True)
class OdmPaper(ExploringMixer):
    """Moving average R of loss / weight, and ``p = eps_t + (1 - K eps_t) softmax(eps_{t-1} R)``.

    The weights returned for the losses of step t are the policy of step t + 1, so they use
    ``eps_{t+1}`` and ``eps_t``. R starts at 0 and changes only for domains in the step.

    The method decays to uniform: R is bounded, and ``eps``, which is also the inverse
    temperature, tends to 0. With 22 domains and losses that differ by one nat, all weights are
    within a few percent of 1/22 after 10,000 steps. Use it to reproduce and compare; for training
    use ``smoothed_mean``.

    Source: arXiv:2312.02406. The sources that we could read do not tell the value of alpha, nor
    whether the average of an unseen domain stays the same.
    """

    smoothing_factor: float = 0.9
    """Weight of the old value in the moving average (alpha), in [0, 1)."""

    def __post_init__(self) -> None:
        check_smoothing_factor(self.name, self.smoothing_factor)

    def _reward_range(self, step: int) -> tuple[float, float]:
        return -MAX_REWARD, MAX_REWARD

    def _update(self, state: State, observation: Observation) -> tuple[State, FloatArray]:
        old = np.array(state["estimated_reward"], dtype=np.float64)
        weighted = self._over_weights(observation.losses, observation)
        new = self.smoothing_factor * old + (1.0 - self.smoothing_factor) * weighted
        reward = np.where(observation.present, new, old)
        # From the step, not from stored values: so an update frequency above 1 keeps the published
        # index.
        previous = exploration_rate(observation.step, reward.size)
        eps = exploration_rate(observation.step + 1, reward.size)
        return self._mixed(reward, eps, previous)
