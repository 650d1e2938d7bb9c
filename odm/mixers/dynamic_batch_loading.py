"""Dynamic batch loading (Sheared LLaMA): domains are raised while their loss is above a target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..observation import Observation
from ..simplex import FloatArray
from .base import register
from .excess_loss import ExcessLossMixer


@register("dynamic_batch_loading")
@dataclass(frozen=True)
class DynamicBatchLoading(ExcessLossMixer):
    """``p_i <- p_i exp(step_size * max(L_i - target_i, 0))``, normalised, smoothed.

    L are held-out losses in an update that comes with them, else the training losses of the step. A
    domain without a loss keeps its last excess. Where all domains have reached their targets the
    weights stay.

    Source: Xia et al. 2023, arXiv:2310.06694, which takes the targets from scaling laws or from the
    loss of the model before it was pruned. Different on purpose:

    - The original measures all domains on held-out data at every update; training losses, which
      cost nothing, stand in where there are none.
    - The released code does not clip the difference at 0; the paper does, as here. It adds
      ``c / K`` with c = 1e-4 as DoReMi does, which the paper does not tell; as here.
    """

    given: ClassVar[str] = "target_losses"

    target_losses: tuple[float, ...] = ()
    """Losses to reach in nats per token, one per domain; required."""
    step_size: float = 1.0
    """Factor of the difference, above 0."""
    smoothing: float = 1e-4
    """Share of uniform weights (c), in [0, 1); at 0 a weight that has become 0 stays so."""

    def _losses(self, observation: Observation) -> FloatArray:
        if observation.held_out is not None:
            return observation.held_out.mean_loss
        return super()._losses(observation)
