"""Float32 products through oneDNN, on processors where MKL behind torch's ``@`` is slow.

MKL uses AVX-512 only on Intel's processors, oneDNN on all that have it. With AVX2, and on Intel's
processors, oneDNN wins nothing. ``python -m tools.benchmark.matrix_products`` prints both ways on
this machine. The processor alone decides, so that a machine always computes the same bits.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["linear", "onednn_wins", "product", "transposed_product"]

_SMALLEST = 1 << 24
"""Multiplications from which on oneDNN is called, which takes 20 us more to start."""


def onednn_wins() -> bool:
    """Whether oneDNN is faster than MKL on this processor, and torch has it."""
    operators = torch.ops.mkldnn
    if not (torch.backends.mkldnn.is_available() and hasattr(operators, "_linear_pointwise")):
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        return "GenuineIntel" not in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return False


_WINS = onednn_wins()


def linear(features: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As ``F.linear``: (..., k), (m, k), (m,) -> (..., m); through oneDNN differentiable once."""
    if not _is_faster(features, weight):
        return F.linear(features, weight, bias)
    rows = _Linear.apply(features.flatten(0, -2), weight, bias)
    return rows.unflatten(0, features.shape[:-1])


def product(rows: Tensor, weight: Tensor) -> Tensor:
    """``rows @ weight.T``, (n, k) and (m, k), which may be views -> (n, m); without gradients."""
    return _onednn(rows, weight) if _is_faster(rows, weight) else rows @ weight.t()


def transposed_product(left: Tensor, right: Tensor) -> Tensor:
    """``left.T @ right``, (n, m) and (n, k) -> (m, k), maybe a view; without gradients."""
    if not _is_faster(left.t(), right.t()):
        return left.t() @ right
    if left.shape[1] <= right.shape[1]:
        return _onednn(left.t(), right.t())
    return _onednn(right.t(), left.t()).t()  # twice as fast with the wider one on the right


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, weight, bias):
        ctx.save_for_backward(rows, weight)
        return _onednn(rows, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        rows, weight = ctx.saved_tensors
        grad_rows = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_rows = _onednn(grad, weight.t())
        if ctx.needs_input_grad[1]:
            grad_weight = transposed_product(grad, rows).contiguous()
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(dim=0)
        return grad_rows, grad_weight, grad_bias


def _onednn(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


def _is_faster(rows: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN is to multiply (..., k) and (m, k)."""
    return (
        _WINS
        and math.prod(rows.shape[:-1]) * weight.numel() >= _SMALLEST
        and rows.dtype == weight.dtype == torch.float32
        and rows.device.type == "cpu"
        and not torch.compiler.is_compiling()
    )
