"""DoReMi: domains are raised while their loss is above that of a reference model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import register
from .excess_loss import ExcessLossMixer


@register("doremi")
@dataclass(frozen=True)
class Doremi(ExcessLossMixer):
    """``p_i <- p_i exp(step_size * max(L_i - R_i, 0))``, normalised, then ``(1 - c) p + c / K``.

    R are the losses of a reference model, trained before with other weights. A domain that was not
    drawn keeps its last excess.

    Source: Xie et al. 2023, arXiv:2305.10429, Group DRO of a proxy model, and the released code.
    Different on purpose:

    - The original computes the reference model's loss of every token of the batch, and clips the
      excess at 0 per token. Here R is one mean per domain, and so the mean is clipped: what a
      domain lacks on some tokens can be made up for by others.
    - The original draws domains uniformly and multiplies their losses by p. Here p draws the
      domains, which has the same expected gradient, and is what its third stage does.
    - The original trains a proxy with moving weights, then the real model with the mean of p over
      the proxy's run. This is one run; a run with ``static`` and the mean weights is the last
      stage.
    """

    given: ClassVar[str] = "reference_losses"

    reference_losses: tuple[float, ...] = ()
    """Mean losses of the reference model in nats per token, one per domain; required."""
    step_size: float = 1.0
    """Factor of the excess loss (eta), above 0."""
    smoothing: float = 1e-3
    """Share of uniform weights (c), in [0, 1); at 0 a weight that has become 0 stays so."""
