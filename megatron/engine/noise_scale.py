"""The gradient noise scale: how large a batch pays (McCandlish et al. 2018, appendix A.1).

The simple noise scale tr(S) / |G|^2 is a number of samples: S is the covariance of the gradient of
a single sample, G the true gradient. In batches much smaller than it, noise dominates; much larger
ones hardly help.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron.engine.domain_sums import all_reduce_sum
from megatron.engine.gradient_norm import sum_of_squares

__all__ = ["NoiseScale"]

_BETA = 0.99
"""Decay of both averages, as in GPT-NeoX."""


class NoiseScale:
    """Estimates the noise scale from the gradients of consecutive iterations. A `GradientReader`.

    As in GPT-NeoX, the gradient of one iteration is the small batch, B samples, and the mean of
    ``num_batches`` of them the large one. With g a small and G a large batch's gradient,

        |G|^2 = (n B |G|^2 - B |g|^2) / (n B - B),    tr(S) = (|g|^2 - |G|^2) / (1 / B - 1 / (n B))

    are free of bias, if the weights hardly change between the n iterations. Both are averaged over
    time, and the noise scale is their quotient. |g|^2 is the mean over the n iterations, where
    GPT-NeoX takes the last one: the same in expectation, with less noise.

    Args:
        batch_size: Samples of an iteration, B.
        num_batches: Iterations of a large batch, n, at least 2.
        device: Where the norms are computed.
        on_cpu: Whether the sum of gradients is kept in the CPU's memory.
    """

    wants_gradients = True

    def __init__(
        self, batch_size: int, num_batches: int, *, device: torch.device, on_cpu: bool = False
    ):
        self._batch_size = batch_size
        self._num_batches = num_batches
        self._device = device
        self._buffer_device = torch.device("cpu") if on_cpu else device
        self._sums: dict[str, Tensor] = {}
        self._squares = self._zero()
        self._num_taken = 0
        self._average: Tensor | None = None

    def take(self, name: str, gradient: Tensor, scale: Tensor) -> None:
        """See `GradientReader`."""
        unclipped = gradient.float() * scale.float()
        self._squares = self._squares + sum_of_squares(unclipped)
        kept = unclipped.to(self._buffer_device)
        if name in self._sums:
            self._sums[name] += kept
        else:
            self._sums[name] = kept

    def after_step(self, *, skipped: bool) -> None:
        """Ends an iteration; all ranks call it. A skipped one has no gradients and does not count.

        Every ``num_batches`` iterations two numbers are summed over the ranks; nobody waits.
        """
        if skipped:
            return
        self._num_taken += 1
        if self._num_taken < self._num_batches:
            return
        n = self._num_batches
        large = self._zero()
        for total in self._sums.values():
            large = large + sum_of_squares(total).to(self._device) / n**2
        small, large = all_reduce_sum(torch.stack((self._squares / n, large))).unbind()
        self._sums.clear()
        self._squares, self._num_taken = self._zero(), 0
        batch = float(self._batch_size)
        true_square = (n * batch * large - batch * small) / (n * batch - batch)
        variance = (small - large) / (1.0 / batch - 1.0 / (n * batch))
        estimate = torch.stack((variance, true_square))
        # the correction of a young average would cancel in the quotient
        old = torch.zeros_like(estimate) if self._average is None else self._average
        self._average = _BETA * old + (1.0 - _BETA) * estimate

    def value(self) -> float | None:
        """The noise scale in samples; waits for the device.

        None before the first estimate, and while the noise hides the true gradient: the estimate of
        its square is then not above 0.
        """
        if self._average is None:
            return None
        variance, true_square = self._average.tolist()
        return variance / true_square if true_square > 0 else None

    def _zero(self) -> Tensor:
        return torch.zeros((), dtype=torch.float64, device=self._device)
