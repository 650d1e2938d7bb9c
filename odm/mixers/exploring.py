"""The common part of methods with rewards and a decreasing floor: their state and its checks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ..json_data import Check, SchemaError, list_of, number, optional
from ..simplex import FloatArray, exploration_rate, mix_with_uniform, normalize, softmax
from .base import Mixer, State

_ROUNDING = 1e-9


class ExploringMixer(Mixer):
    """Mixes shares that follow rewards with a uniform share ``eps`` for every domain.

    The state has ``eps`` of the last weights, ``prev_eps`` of the weights before them (null before
    the first update), and a reward per domain.
    """

    estimate: ClassVar[str] = "estimated_reward"

    def _init(self, weights: FloatArray) -> State:
        return {
            "eps": 1.0 / weights.size,
            "prev_eps": None,
            self.estimate: [0.0] * weights.size,
        }

    def state_fields(self, initial: FloatArray, step: int) -> dict[str, Check]:
        """As in `Mixer`; ``eps`` only decreases, and follows from the step of the last update."""
        low = exploration_rate(step + 1, initial.size) * (1 - _ROUNDING)
        eps = number(low, 1.0 / initial.size)
        rewards = list_of(number(*self._reward_range(step)), initial.size)
        return {"eps": eps, "prev_eps": optional(eps), self.estimate: rewards}

    def proposals(self, state: Mapping[str, Any], initial: FloatArray) -> list[FloatArray]:
        """As in `Mixer`; the weights follow from the state and from ``share``, an option."""
        if state["prev_eps"] is None:
            if state != self._init(initial):
                raise SchemaError("mixer.prev_eps: is null, but there are rewards; it is damaged")
            return [normalize(initial)]
        reward = np.array(state[self.estimate], dtype=np.float64)
        with np.errstate(all="ignore"):  # for numbers that cannot belong to one state
            shares = self._shares(reward, state["prev_eps"])
            return [mix_with_uniform(share, state["eps"]) for share in shares]

    def _shares(self, reward: FloatArray, previous: float) -> tuple[FloatArray, ...]:
        """Shares of the domains, each of shape (K,), for every value of the method's options."""
        return (softmax(previous * reward),)

    def _mixed(
        self, reward: FloatArray, eps: float, previous: float, share: FloatArray | None = None
    ) -> tuple[State, FloatArray]:
        """The state and the weights after an update; shares are a softmax of the rewards."""
        following = {"eps": eps, "prev_eps": previous, self.estimate: reward.tolist()}
        share = softmax(previous * reward) if share is None else share
        return following, mix_with_uniform(share, eps)

    @abstractmethod
    def _reward_range(self, step: int) -> tuple[float, float]:
        """Smallest and largest reward that is possible after a number of steps."""
