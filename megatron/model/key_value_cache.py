"""Keys and values of the positions that a model has processed, in tensors allocated once.

Shapes: b batch, s new positions, t all positions, g key-value heads of this rank, d head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["KeyValueCache"]


class KeyValueCache:
    """The keys and values of one layer for one batch.

    Args:
        num_kv_heads: Key-value heads of this tensor-parallel rank.
        capacity: Maximum number of positions.
    """

    def __init__(
        self,
        batch: int,
        num_kv_heads: int,
        capacity: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
    ):
        shape = (batch, num_kv_heads, capacity, head_dim)
        self._keys = torch.empty(shape, dtype=dtype, device=device)
        self._values = torch.empty(shape, dtype=dtype, device=device)
        self._length = 0

    @property
    def length(self) -> int:
        """Number of filled positions."""
        return self._length

    @property
    def capacity(self) -> int:
        """Maximum number of positions."""
        return self._keys.shape[2]

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Copies keys and values of new positions, (b, g, s, d), after the filled ones.

        Returns:
            Keys and values of all positions, (b, g, t, d) each, as views: nothing is concatenated.
        """
        start, end = self._length, self._length + keys.shape[2]
        assert end <= self.capacity, f"{end} positions in a cache of {self.capacity}"
        self._keys[:, :, start:end] = keys
        self._values[:, :, start:end] = values
        self._length = end
        return self._keys[:, :, :end], self._values[:, :, :end]

    def select(self, rows: Tensor) -> KeyValueCache:
        """A new cache of the given rows, (n,) int64, which may leave out or repeat rows."""
        chosen = object.__new__(KeyValueCache)
        chosen._keys = self._keys.index_select(0, rows)
        chosen._values = self._values.index_select(0, rows)
        chosen._length = self._length
        return chosen

    def rewind(self, length: int) -> None:
        """Forgets all but the first ``length`` positions, so that other text can follow them."""
        assert 0 <= length <= self._length, f"rewind to {length} of {self._length} positions"
        self._length = length
