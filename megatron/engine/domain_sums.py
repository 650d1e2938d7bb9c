"""Per-domain sums of losses: recorded micro-batch by micro-batch, added up over the ranks.

No other module knows how the sums are packed. To add a quantity per domain, such as bytes of text,
add a field to `DomainSums` and fill it in `DomainLossRecorder.sums`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from odm import Signal

__all__ = ["DomainLossRecorder", "DomainSums", "HeldOutSums", "all_reduce_sum"]

Numbers = TypeVar("Numbers", Tensor, np.ndarray)
"""Tensors on the device for the sums of one rank, arrays on the host for those of all ranks."""


@dataclass(frozen=True)
class DomainSums(Generic[Numbers]):
    """Sums over the tokens of one step, float64; each field has one dimension."""

    loss_sum: Numbers
    """Sum of the losses in nats, shape (K,)."""
    loss_sq_sum: Numbers
    """Sum of the squared losses, shape (K,)."""
    token_count: Numbers
    """Tokens that count in the loss, shape (K,)."""
    sample_count: Numbers
    """Samples with at least one such token, shape (K,)."""
    total: Numbers
    """Sum of the losses and number of tokens of all domains, shape (2,)."""

    def all_reduce(
        self: DomainSums[Tensor], *own: float, same: Sequence[Tensor] = ()
    ) -> tuple[DomainSums[np.ndarray], Any]:
        """Adds up all fields over the ranks: one collective, and the only wait of a step.

        Args:
            own: Other numbers of this rank, summed in the same collective.
            same: Numbers on the device that all ranks have alike, shape () each. They are not
                summed, only read together with the sums.

        Returns:
            The sums over all ranks, on the host, and an array with the sums of ``own``, then
            ``same``.
        """
        fields: dict[str, Tensor] = vars(self)
        along = torch.from_numpy(np.array(own, dtype=np.float64))
        packed = torch.cat([*fields.values(), along.to(self.total.device, non_blocking=True)])
        beside: list[Tensor] = [number.detach().double().view(1) for number in same]
        numbers, first = torch.cat([all_reduce_sum(packed), *beside]).cpu().numpy(), 0
        reduced = {}
        for name, field in fields.items():
            reduced[name] = numbers[first : first + len(field)]
            first += len(field)
        return DomainSums(**reduced), numbers[first:]

    def signal(self: DomainSums[np.ndarray]) -> Signal:
        """The signal that the mixture learns from; only for reduced sums."""
        table = (self.loss_sum, self.loss_sq_sum, self.token_count, self.sample_count)
        return Signal.from_sums(np.array(table))

    def mean_loss(self: DomainSums[np.ndarray]) -> float:
        """Mean over all tokens that count, in nats, for reduced sums; 0 if no token counts."""
        loss, tokens = self.total
        return float(loss / max(tokens, 1.0))


class HeldOutSums(NamedTuple):
    """Sums over held-out samples, float64, shape (K,): what a mean and its standard error need.

    L is a sample's loss sum, and T its token count.
    """

    loss: Tensor
    """L, in nats."""
    tokens: Tensor
    """T."""
    loss_squares: Tensor
    """L^2."""
    products: Tensor
    """L T."""
    token_squares: Tensor
    """T^2."""

    def all_reduce(self) -> HeldOutSums:
        """Adds up all fields over the ranks; the result is on the host."""
        return HeldOutSums(*all_reduce_sum(torch.stack(self)).cpu())


class DomainLossRecorder:
    """Per-domain sums of one optimizer step or one evaluation, kept on the device.

    A micro-batch leaves three sums per sample; they are assigned to domains only once, at the end,
    because each operation has a cost besides its arithmetic.
    """

    def __init__(self, num_domains: int, device: torch.device):
        self.num_domains = num_domains
        self.device = device
        self._sums: list[Tensor] = []
        self._domain_ids: list[Tensor] = []

    def record(self, nll: Tensor, loss_mask: Tensor, domain_ids: Tensor) -> None:
        """Adds one micro-batch.

        Args:
            nll: (b, s) negative log-likelihoods in nats.
            loss_mask: (b, s), 0 where a token does not count.
            domain_ids: (b,) int64, the domain of each sample.
        """
        losses = nll.detach() * loss_mask
        values = torch.stack((losses, losses * losses, loss_mask))
        self._sums.append(values.sum(dim=2, dtype=torch.float64))
        self._domain_ids.append(domain_ids)

    def sums(self) -> DomainSums[Tensor]:
        """Sums of all micro-batches so far; no host synchronisation."""
        micro_batches = self._micro_batches()
        loss, squares, tokens = torch.cat(micro_batches, dim=1)
        totals = torch.stack([sums.sum(dim=1) for sums in micro_batches], dim=1)
        by_domain = self._by_domain(
            loss_sum=loss,
            loss_sq_sum=squares,
            token_count=tokens,
            sample_count=(tokens > 0).double(),
        )
        return DomainSums(**by_domain, total=totals[::2].sum(dim=1))

    def held_out_sums(self) -> HeldOutSums:
        """Sums of all batches so far; no host synchronisation."""
        loss, _, tokens = torch.cat(self._micro_batches(), dim=1)
        by_domain = self._by_domain(
            loss=loss,
            tokens=tokens,
            loss_squares=loss * loss,
            products=loss * tokens,
            token_squares=tokens * tokens,
        )
        return HeldOutSums(**by_domain)

    def _micro_batches(self) -> list[Tensor]:
        """Sums of losses, of squared losses and of tokens of each sample, (3, b) per micro-batch.

        If there are none, as on a rank whose losses another rank records, returns one without
        samples.
        """
        return self._sums or [torch.zeros(3, 0, dtype=torch.float64, device=self.device)]

    def _by_domain(self, **of_samples: Tensor) -> dict[str, Tensor]:
        """Sums quantities per sample, each of shape (n,), to quantities per domain, (K,)."""
        rows = torch.stack([*of_samples.values()])
        table = rows.new_zeros(len(rows), self.num_domains)
        if self._domain_ids:
            table.index_add_(1, torch.cat(self._domain_ids), rows)
        return dict(zip(of_samples, table, strict=True))


def all_reduce_sum(sums: Tensor) -> Tensor:
    """Sums over all ranks, in place; a no-op for one process."""
    if dist.get_world_size() > 1:
        dist.all_reduce(sums)
    return sums
