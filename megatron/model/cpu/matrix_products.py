"""Float32 products on a CPU through oneDNN, which torch's ``@`` reaches for bfloat16 only.

MKL, behind ``@``, is slow on AMD processors, most of all where the inner dimension is short, as in
the unembedding. On Intel's own it is at least as quick, but for few rows. So the processor's maker
decides, and the same machine always computes alike; `tools/benchmark/matrix_products.py` prints
both ways. Elsewhere these are plain products.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = [
    "ProductSum",
    "has_repeated_product",
    "linear",
    "linear_product",
    "onednn_product",
    "repeated_product",
]


def _has_onednn_linear() -> bool:
    operators = torch.ops.mkldnn
    return torch.backends.mkldnn.is_available() and all(
        hasattr(operators, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
    )


def _is_made_by_intel() -> bool:
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return False


_HAS_ONEDNN_LINEAR = _has_onednn_linear()

_ROWS_FOR_MKL = 128 if _is_made_by_intel() else math.inf
"""Rows of the left operand from which on `@` is at least as quick."""

_STRIP = 1024
"""Columns that a transposition takes at a time: torch copies a whole large matrix on one thread."""


_SMALLEST_LINEAR = 1 << 24
"""Multiplications from which on `linear` calls oneDNN, which takes 20 us more to start."""


def linear(features: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As ``F.linear``: (..., k), (m, k), (m,) -> (..., m); with oneDNN differentiable once.

    The gradient of the weight is a plain product: oneDNN would transpose both operands first.
    """
    rows = features.flatten(0, -2)
    is_large = rows.shape[0] * weight.numel() >= _SMALLEST_LINEAR
    if is_large and _is_quicker(rows.shape[0], rows, weight):
        return _Linear.apply(rows, weight, bias).unflatten(0, features.shape[:-1])
    return F.linear(features, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, weight, bias):
        ctx.save_for_backward(rows, weight)
        return onednn_product(rows, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        rows, weight = ctx.saved_tensors
        grad_rows = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_rows = onednn_product(grad, weight.t())
        if ctx.needs_input_grad[1]:
            grad_weight = grad.t() @ rows
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(dim=0)
        return grad_rows, grad_weight, grad_bias


def linear_product(rows: Tensor, weight: Tensor) -> Tensor:
    """``rows @ weight.T``, (n, k) and (m, k), which may be a view -> (n, m); without gradients."""
    if _is_quicker(rows.shape[0], rows, weight):
        return onednn_product(rows, weight)
    return rows @ weight.t()


def has_repeated_product(weight: Tensor, num_rows: int) -> bool:
    """Tells whether `repeated_product` does anything for this weight."""
    return _is_quicker(num_rows, weight)


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
    if not has_repeated_product(weight, num_rows):
        return lambda rows: F.linear(rows, weight, bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(_contiguous(weight), num_rows)
    return lambda rows: (
        onednn_product(rows, packed, bias) if rows.numel() else F.linear(rows, weight, bias)
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


def onednn_product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear_product` by oneDNN, of float32 operands on a CPU that are not empty."""
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


def _is_quicker(num_rows: int, *operands: Tensor) -> bool:
    """Whether oneDNN can multiply the operands, and is quicker than `@` for so many rows."""
    return (
        _HAS_ONEDNN_LINEAR
        and num_rows < _ROWS_FOR_MKL
        and all(
            operand.dtype == torch.float32
            and operand.device.type == "cpu"
            and operand.numel() > 0  # a tensor-parallel rank may hold no token of the vocabulary
            for operand in operands
        )
    )
