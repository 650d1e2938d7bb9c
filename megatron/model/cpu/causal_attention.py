"""Causal attention in bfloat16 on processors where torch's kernel for it is slow.

Torch multiplies small blocks through MKL, which leaves out AVX-512 on processors that are not
Intel's. Here a block is 256 queries of some heads, and oneDNN multiplies. As in torch's kernel,
scores and their gradients are float32 sums of products of bfloat16 numbers, and the weights are
computed again for the gradients, so that no (s, s) matrix exists.

Shapes: b batch, s positions, n query heads and g key-value heads (n = g * r), d head size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron.model.cpu.products import onednn_wins

__all__ = ["causal_attention", "is_faster"]

_SHORTEST, _LONGEST = 512, 767
"""Positions for which it is faster (`tools/benchmark/attention_products.py`); from 768 on torch's
kernel takes larger blocks itself."""
_ROWS = 256
"""Queries at a time."""
_SCORES = 1 << 19
"""Scores at a time, about: 2 MiB, which stay in a cache."""


_SETTINGS: Any = getattr(torch.backends.mkldnn, "matmul", None)
"""How oneDNN multiplies float32 matrices."""


def _wins_here() -> bool:
    has_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    is_complete = hasattr(_SETTINGS, "fp32_precision") and hasattr(torch, "_softmax_backward_data")
    return onednn_wins() and is_complete and has_bf16()


_WINS = _wins_here()


def is_faster(query: Tensor, key: Tensor) -> bool:
    """Whether `causal_attention` is to be called, for (b, n, s, d) and (b, g, s, d)."""
    return (
        _WINS
        and query.dtype == torch.bfloat16
        and query.device.type == "cpu"
        and query.shape[2] == key.shape[2]
        and _SHORTEST <= query.shape[2] <= _LONGEST
        and not torch.compiler.is_compiling()
    )


def causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Each query mixes the values up to its own position; differentiable once.

    Args:
        query: (b, n, s, d) bfloat16.
        key: (b, g, s, d), g divides n.
        value: (b, g, s, d).

    Returns:
        (b, n, s, d).
    """
    batch, heads, length, size = query.shape
    groups = key.shape[1]
    grouped = query.reshape(batch * groups, heads // groups, length, size)
    flat = (tensor.reshape(batch * groups, length, size) for tensor in (key, value))
    return _CausalAttention.apply(grouped, *flat).view(query.shape)


class _CausalAttention(torch.autograd.Function):
    """(b * g, r, s, d), (b * g, s, d), (b * g, s, d) -> (b * g, r, s, d)."""

    @staticmethod
    def forward(ctx, query, key, value):
        ctx.save_for_backward(query, key, value)
        result = torch.empty_like(query)
        exact_query, exact_key = query.float(), key.float()
        with _rounded_products():
            for heads, rows, seen in _blocks(query):
                weights = _weights(exact_query, exact_key, heads, rows, seen).to(query.dtype)
                _put(result, heads, rows, torch.bmm(weights, value[heads, seen]))
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        query, key, value = ctx.saved_tensors
        exact_query, exact_key, exact_value = query.float(), key.float(), value.float()
        exact_grad = grad.float()
        grad_query = torch.empty_like(query)
        grad_key, grad_value = torch.zeros_like(exact_key), torch.zeros_like(exact_value)
        scale = query.shape[-1] ** -0.5
        with _rounded_products():
            for heads, rows, seen in _blocks(query):
                weights = _weights(exact_query, exact_key, heads, rows, seen)
                own_grad = _take(exact_grad, heads, rows)
                grad_weights = torch.bmm(own_grad, exact_value[heads, seen].transpose(1, 2))
                grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
                rounded, grad_scores = weights.to(query.dtype), grad_scores.to(query.dtype)
                of_values = torch.bmm(rounded.transpose(1, 2), _take(grad, heads, rows))
                grad_value[heads, seen].add_(of_values)
                of_keys = torch.bmm(grad_scores.transpose(1, 2), _take(query, heads, rows))
                grad_key[heads, seen].add_(of_keys)
                _put(grad_query, heads, rows, torch.bmm(grad_scores, key[heads, seen]))
        return grad_query.mul_(scale), grad_key.mul_(scale).to(key.dtype), grad_value.to(key.dtype)


def _blocks(query: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """Key-value heads, queries, and the keys that some of these queries see."""
    heads, repeats, length, _ = query.shape
    for start in range(0, length, _ROWS):
        end = min(start + _ROWS, length)
        size = max(1, _SCORES // (repeats * (end - start) * end))
        for first in range(0, heads, size):
            yield slice(first, first + size), slice(start, end), slice(0, end)


def _weights(query: Tensor, key: Tensor, heads: slice, rows: slice, seen: slice) -> Tensor:
    """Softmax of a block's scores, (heads, r * rows, seen)."""
    scores = torch.bmm(_take(query, heads, rows), key[heads, seen].transpose(1, 2))
    scores.mul_(query.shape[-1] ** -0.5)
    count = rows.stop - rows.start
    scores.unflatten(1, (-1, count))[..., rows].add_(_hidden(count))
    return torch.softmax(scores, dim=-1, out=scores)


@lru_cache(maxsize=2)
def _hidden(count: int) -> Tensor:
    """-inf for each later one of ``count`` positions, (count, count)."""
    return torch.full((count, count), -math.inf, dtype=torch.float32).triu_(1)


def _take(tensor: Tensor, heads: slice, rows: slice) -> Tensor:
    """A block of queries, (b * g, r, s, d) -> (heads, r * rows, d)."""
    return tensor[heads, :, rows].flatten(1, 2)


def _put(tensor: Tensor, heads: slice, rows: slice, block: Tensor) -> None:
    """Writes what `_take` would read."""
    tensor[heads, :, rows] = block.unflatten(1, (tensor.shape[1], -1))


@contextmanager
def _rounded_products() -> Iterator[None]:
    """Products of float32 tensors inside go to oneDNN, which rounds the operands to bfloat16.

    They are bfloat16 numbers already, so that nothing is lost; sums and results are float32.
    """
    before = _SETTINGS.fp32_precision
    _SETTINGS.fp32_precision = "bf16"
    try:
        yield
    finally:
        _SETTINGS.fp32_precision = before
