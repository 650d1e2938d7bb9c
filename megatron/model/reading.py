"""What all layers share in one pass of a model that only reads: angles, mask, causality.

Shapes: b batch, s new positions, t all positions, r rotated part of the head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron.model.positional_embeddings import RotaryTable, signed_angles

__all__ = ["ReadingStep", "make_reading_step", "rotate_"]


@dataclass(frozen=True)
class ReadingStep:
    """Computed once for a pass, used by every layer."""

    cos: Tensor | None
    """(b or 1, s, 1, 1, r) in the arithmetic of the rotation; None without rotary positions."""
    sin: Tensor | None
    """As ``cos``; the first half is negative."""
    bias: Tensor | None
    """Added to the scores, broadcastable to (b, 1, s, t): 0 or -inf; None adds nothing."""
    is_causal: bool
    """Whether query i sees the first i + 1 keys; for a pass without earlier positions."""


def make_reading_step(
    rotary: RotaryTable | None,
    *,
    start: int,
    length: int,
    longest: int,
    like: Tensor,
    positions: Tensor | None,
    attention_mask: Tensor | None,
) -> ReadingStep:
    """Prepares a pass over ``length`` new positions behind ``start`` earlier ones.

    Args:
        rotary: The angles; None for other positions.
        start: Positions in the caches.
        length: s.
        longest: Positions that the model reads; ``positions`` are below it.
        like: A tensor of the model's dtype and device.
        positions: (b, s) int64, where each token stands; None: start, start + 1, ...
        attention_mask: bool, broadcastable to (b, 1, s, t), True where a query may attend; None is
            causal. A query that may attend nowhere gets the mean of all values instead of NaN.
    """
    cos = sin = None
    if rotary is not None:
        end = start + length
        # the whole table at once: a longer one for each token would be made anew each time
        cos, sin = rotary.get(max(longest, end), like.device)
        rows = slice(start, end) if positions is None else positions
        cos, sin = signed_angles(cos[rows], sin[rows], like.dtype)
    bias = None
    if attention_mask is not None:
        bias = _bias(attention_mask, like)
    elif start > 0 and length > 1:
        mask = torch.ones(length, start + length, dtype=torch.bool, device=like.device)
        bias = _bias(mask.tril(diagonal=start), like)
    return ReadingStep(cos, sin, bias, is_causal=bias is None and length > 1)


def rotate_(features: Tensor, step: ReadingStep) -> None:
    """Rotates the leading r features of (b, s, groups, slots, d) in place, without gradients.

    The same rotation as `apply_rotary_` in three operations: a token at a time their number is
    what counts.
    """
    if step.cos is None or step.sin is None:
        return
    size = step.cos.shape[-1]
    rotated = features if size == features.shape[-1] else features[..., :size]
    if rotated.dtype == step.cos.dtype:
        swapped = rotated.roll(size // 2, dims=-1)
        rotated.mul_(step.cos).addcmul_(swapped, step.sin)
    else:
        exact = rotated.to(step.cos.dtype)
        rotated.copy_(exact * step.cos + exact.roll(size // 2, dims=-1) * step.sin)


def _bias(mask: Tensor, like: Tensor) -> Tensor:
    """0 where ``mask`` is True and -inf elsewhere; a row without any True is 0 throughout."""
    seen = mask | ~mask.any(dim=-1, keepdim=True)
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill_(
        ~seen, float("-inf")
    )
