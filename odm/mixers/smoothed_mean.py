"""Online data mixing as its authors released it: domains in proportion to smoothed perplexity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..observation import Observation
from ..simplex import FloatArray, exploration_rate, normalize, softmax
from ..wording import shown
from .base import State, check_smoothing_factor, register
from .exploring import ExploringMixer

# exp(700) = 1e304: the sum over a thousand domains with this loss is still finite. A loss this high
# means that the run has diverged; higher losses are treated as equal to it, which raises no error.
_MAX_LOSS_NATS = 700.0
_MAX_PERPLEXITY = 1.1e304


@register("smoothed_mean")
@dataclass(frozen=True)
class SmoothedMean(ExploringMixer):
    """Moving average R of exp(mean loss); the weights are its shares plus a shrinking floor.

    ``p_i = eps_t + (1 - K * eps_t) * R_i / sum(R)`` with
    ``eps_t = min(1 / K, sqrt(ln K / (K * t)))``; R starts at 0 and changes only for domains in the
    step. A domain that has never been in a step gets exactly ``eps_t``.

    Source: the released research code of arXiv:2312.02406 (``group_update``). The published
    equation is different: see ``odm_paper``.
    """

    smoothing_factor: float = 0.9
    """Weight of the old value in the moving average, in [0, 1)."""
    share: Literal["linear", "softmax"] = "linear"
    """``linear`` is ``group_update``. ``softmax`` is the released one-domain ``update``:
    ``softmax(eps_{t-1} * R)`` replaces ``R / sum(R)``; this is a different method."""

    def __post_init__(self) -> None:
        check_smoothing_factor(self.name, self.smoothing_factor)
        if not isinstance(self.share, str) or self.share not in ("linear", "softmax"):
            raise ValueError(
                f"{self.name}: share must be linear or softmax, got {shown(self.share)}"
            )

    def _reward_range(self, step: int) -> tuple[float, float]:
        return 0.0, _MAX_PERPLEXITY

    def _shares(self, reward: FloatArray, previous: float) -> tuple[FloatArray, ...]:
        return normalize(reward), softmax(reward * previous)

    def _update(self, state: State, observation: Observation) -> tuple[State, FloatArray]:
        losses = observation.losses
        perplexity = np.exp(np.minimum(np.maximum(losses, -_MAX_LOSS_NATS), _MAX_LOSS_NATS))
        old = np.array(state["estimated_reward"], dtype=np.float64)
        new = self.smoothing_factor * old + (1.0 - self.smoothing_factor) * perplexity
        reward = np.where(observation.present, new, old)
        previous, eps = state["eps"], exploration_rate(observation.step, losses.size)
        share = normalize(reward) if self.share == "linear" else None
        return self._mixed(reward, eps, previous, share)
