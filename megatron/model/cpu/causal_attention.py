"""Causal self-attention on a CPU in tiles, so that the masked half of the scores is not computed.

Torch's CPU kernel takes keys in blocks of 512 and computes whole blocks: up to that length it
computes all scores and then masks half of them. Here the triangle is cut into small triangles on
the diagonal, which the kernel masks, and squares below it, which need no mask::

    d . . .
    1 d . .      d: triangles of s / 4 positions
    0 0 d .      0: one square of s / 2 positions, 1: two squares of s / 4
    0 0 1 d

Tiles of a kind are one call of the kernel, in which they count as further samples. Two parts of a
row are merged by their log-sum-exps; the backward pass of the kernel, given the log-sum-exp and the
output of the whole row, returns the exact part of each tile, and the parts add up.

Shapes: b batch, s positions, n heads, d head size.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["prefers_tiles", "tiled_causal_attention"]

_SHORTEST, _LONGEST = 256, 1024
"""Positions between which tiles win, measured with 4 and 8 heads of 32 and 64: forward and backward
take 0.74 of the time at 512 and 0.8 to 0.9 at the ends. The kernel itself skips blocks beyond."""

_TRIANGLES = 4
"""8 are as quick, 2 are slower."""


def _has_kernel() -> bool:
    names = ("", "_backward")
    return all(
        hasattr(torch.ops.aten, f"_scaled_dot_product_flash_attention_for_cpu{name}")
        for name in names
    )


_HAS_KERNEL = _has_kernel()


def prefers_tiles(fused: Tensor, *, dropout: float) -> bool:
    """Tells whether `tiled_causal_attention` takes this projection (b, s, g, slots, d), and wins.

    Half precision is left to torch: merging parts would round them once more.
    """
    length = fused.shape[1]
    return (
        _HAS_KERNEL
        and fused.device.type == "cpu"
        and fused.dtype in (torch.float32, torch.float64)
        and fused.shape[3] == 3
        and not dropout
        and _SHORTEST <= length <= _LONGEST
        and length % _TRIANGLES == 0
    )


def tiled_causal_attention(fused: Tensor) -> Tensor:
    """Attends from each position to itself and the ones before it, without dropout.

    Args:
        fused: (b, s, n, 3, d), queries, keys and values, float32 or float64 on a CPU; s is a
            multiple of 4.

    Returns:
        (b, s, n, d). Differentiable once.
    """
    return _TiledAttention.apply(fused.contiguous())


class _TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, fused: Tensor) -> Tensor:
        size = fused.shape[1] // _TRIANGLES
        context, normalizer = _attend(*_slots(_tiles(fused, size)), is_causal=True)
        context = context.reshape(*fused.shape[:3], -1)
        normalizer = normalizer.reshape(fused.shape[:3])
        for size in _square_sizes(fused):
            part, part_normalizer = _attend(*_square(fused, size), is_causal=False)
            whole, whole_normalizer = _later(context, size), _later(normalizer, size)
            share = torch.sigmoid(part_normalizer - whole_normalizer)
            whole.lerp_(part, share[..., None])
            torch.logaddexp(whole_normalizer, part_normalizer, out=whole_normalizer)
        ctx.save_for_backward(fused, context, normalizer)
        return context

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        fused, context, normalizer = ctx.saved_tensors
        rows = (grad.contiguous(), context, normalizer)
        size = fused.shape[1] // _TRIANGLES
        parts = _attend_backward(
            *_slots(_tiles(fused, size)), *(_tiles(r, size) for r in rows), is_causal=True
        )
        grad_fused = torch.stack(parts, dim=-2).view(fused.shape)
        for size in _square_sizes(fused):
            parts = _attend_backward(
                *_square(fused, size), *(_later(r, size) for r in rows), is_causal=False
            )
            for total, part in zip(_square(grad_fused, size), parts, strict=True):
                total.add_(part)
        return grad_fused


def _square_sizes(fused: Tensor) -> Iterator[int]:
    size = fused.shape[1] // 2
    while size >= fused.shape[1] // _TRIANGLES:
        yield size
        size //= 2


def _tiles(tensor: Tensor, size: int) -> Tensor:
    """(b, s, ...) -> (b s / size, size, ...), a view."""
    return tensor.view(-1, size, *tensor.shape[2:])


def _earlier(tensor: Tensor, size: int) -> Tensor:
    """Every other tile of ``size``, from the first one: where keys of the squares stand."""
    return _tiles(tensor, size)[0::2]


def _later(tensor: Tensor, size: int) -> Tensor:
    """Every other tile of ``size``, from the second one: where queries of the squares stand."""
    return _tiles(tensor, size)[1::2]


def _slots(fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return fused[..., 0, :], fused[..., 1, :], fused[..., 2, :]


def _square(fused: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of the squares of ``size``, views (tiles, size, n, d)."""
    query, _, _ = _slots(_later(fused, size))
    _, key, value = _slots(_earlier(fused, size))
    return query, key, value


def _attend(query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool) -> tuple[Tensor, Tensor]:
    """(tiles, size, n, d) three times -> the same, and log-sum-exps of scores (tiles, size, n)."""
    context, normalizer = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *(t.transpose(1, 2) for t in (query, key, value)), 0.0, is_causal
    )
    return context.transpose(1, 2), normalizer.transpose(1, 2)


def _attend_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grad: Tensor,
    context: Tensor,
    normalizer: Tensor,
    *,
    is_causal: bool,
) -> tuple[Tensor, ...]:
    """Gradients of query, key and value, as `_attend` takes them."""
    heads = [t.transpose(1, 2) for t in (grad, query, key, value, context, normalizer)]
    gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        *heads, 0.0, is_causal
    )
    return tuple(t.transpose(1, 2) for t in gradients)
