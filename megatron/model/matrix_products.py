"""Float32 products on a CPU through oneDNN, which torch's ``@`` reaches for bfloat16 only.

MKL, behind ``@``, is slow on AMD processors where the inner dimension is short, and the unembedding
is such a product. `tools/benchmark/loss_chunks.py` prints both. Elsewhere these are plain products.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ProductSum", "has_repeated_product", "linear_product", "repeated_product"]


def _has_onednn_linear() -> bool:
    operators = torch.ops.mkldnn
    return torch.backends.mkldnn.is_available() and all(
        hasattr(operators, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
    )


_HAS_ONEDNN_LINEAR = _has_onednn_linear()

_STRIP = 1024
"""Columns that a transposition takes at a time: torch copies a whole large matrix on one thread."""


def linear_product(rows: Tensor, weight: Tensor) -> Tensor:
    """``rows @ weight.T``, (n, k) and (m, k), which may be a view -> (n, m); without gradients."""
    if _uses_onednn(rows) and _uses_onednn(weight):
        return _onednn(rows, weight)
    return rows @ weight.t()


def has_repeated_product(weight: Tensor) -> bool:
    """Tells whether `repeated_product` does anything for this weight."""
    return _uses_onednn(weight)


def repeated_product(
    weight: Tensor, num_rows: int, bias: Tensor | None = None
) -> Callable[[Tensor], Tensor]:
    """Returns `linear_product` with this weight, plus ``bias``, for many products.

    oneDNN copies a weight into blocks of its own at each product; here it does so once.

    Args:
        weight: (m, k), may be a view; must not change while the function is in use.
        num_rows: n of most products.
        bias: (m,).
    """
    if not _uses_onednn(weight):
        return lambda rows: F.linear(rows, weight, bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(_contiguous(weight), num_rows)
    return lambda rows: (
        _onednn(rows, packed, bias) if rows.numel() else F.linear(rows, weight, bias)
    )


def _contiguous(matrix: Tensor) -> Tensor:
    """As ``matrix.contiguous()``, twice as fast for the view of a large transposed matrix."""
    if matrix.is_contiguous():
        return matrix
    copy = torch.empty(matrix.shape, dtype=matrix.dtype)
    for target, source in zip(copy.split(_STRIP, dim=1), matrix.split(_STRIP, dim=1), strict=True):
        target.copy_(source)
    return copy


class ProductSum:
    """``sum of left.T @ right`` over pairs (k, m), (k, n) -> (m, n), such as a weight's gradient.

    Args:
        dtype: Of the sum; a wider one keeps more digits than the operands have.
    """

    def __init__(self, dtype: torch.dtype):
        self._dtype = dtype
        self._total: Tensor | None = None

    def add(self, left: Tensor, right: Tensor) -> None:
        """Adds ``left.T @ right``."""
        if self._total is None:
            self._total = (left.t() @ right).to(self._dtype)
        elif self._dtype == left.dtype:  # `@` here: oneDNN cannot add, and wins nothing without
            self._total.addmm_(left.t(), right)
        else:
            self._total += (left.t() @ right).to(self._dtype)

    @property
    def total(self) -> Tensor:
        """The sum (m, n); `add` must have been called."""
        assert self._total is not None
        return self._total


def _onednn(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


def _uses_onednn(tensor: Tensor) -> bool:
    return (
        _HAS_ONEDNN_LINEAR
        and tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and tensor.numel() > 0  # a tensor-parallel rank may hold no token of the vocabulary
    )
