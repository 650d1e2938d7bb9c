"""Per-domain sums of losses."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["DomainLossRecorder"]


class DomainLossRecorder:
    """Per-domain sums of one optimizer step, kept on the device until `drain` packs them.

    A micro-batch leaves three sums a sample; which domain they belong to is worked out once a step,
    for every operation costs more than its arithmetic.
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

    def drain(self) -> Tensor:
        """Packs this step's sums and starts the next one; no host synchronisation.

        Returns:
            float64 (4 K + 2,): loss sums [K], sums of squared losses [K], token counts [K], sample
            counts [K], then loss sum and token count of all domains together.
        """
        packed = torch.zeros(4 * self.num_domains + 2, dtype=torch.float64, device=self.device)
        if self._sums:
            totals = torch.stack([sums.sum(dim=1) for sums in self._sums], dim=1)
            packed[-2:] = totals[::2].sum(dim=1)
            sums, domain_ids = self._take()
            rows = torch.cat((sums, (sums[2:] > 0).double()))
            packed[:-2].view(4, self.num_domains).index_add_(1, domain_ids, rows)
        return packed

    def drain_held_out(self) -> Tensor:
        """Adds up what a mean and its standard error need, and starts the next ones.

        Returns:
            float64 (5, K), sums over samples, with L the loss sum and T the token count of a
            sample: L, T, L^2, L T and T^2.
        """
        table = torch.zeros(5, self.num_domains, dtype=torch.float64, device=self.device)
        if self._sums:
            sums, domain_ids = self._take()
            loss, tokens = sums[0], sums[2]
            rows = torch.stack((loss, tokens, loss * loss, loss * tokens, tokens * tokens))
            table.index_add_(1, domain_ids, rows)
        return table

    def _take(self) -> tuple[Tensor, Tensor]:
        """The three sums (3, n) and the domains (n,) of all samples so far; forgets them."""
        taken = torch.cat(self._sums, dim=1), torch.cat(self._domain_ids)
        self._sums, self._domain_ids = [], []
        return taken
