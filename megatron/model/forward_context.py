"""What all layers share in a forward pass: rotation angles, mask, causality.

Shapes: b batch, s new positions, t all positions, r rotated part of the head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron.model.positional_embeddings import RotaryTable

__all__ = ["ForwardContext", "make_context"]


@dataclass(frozen=True)
class ForwardContext:
    """Made once per pass in inference; in training each layer makes an equal one from views."""

    angles: tuple[Tensor, Tensor] | None
    """cos and sin, in the form that `rotate_` takes; None without rotary positions."""
    bias: Tensor | None
    """Added to the scores, broadcastable to (b, 1, s, t): 0 or -inf; None adds nothing."""
    is_causal: bool
    """Whether query i attends to the first i + 1 keys; False after earlier positions."""


def make_context(
    rotary: RotaryTable | None,
    length: int,
    *,
    like: Tensor,
    start: int = 0,
    longest: int = 0,
    positions: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> ForwardContext:
    """Prepares a pass over ``length`` new positions after ``start`` earlier ones.

    Args:
        rotary: The table of angles; None without rotary positions.
        length: Number of new positions s.
        like: A tensor of the model's dtype and device.
        start: Number of positions in the caches.
        longest: Number of positions that the model supports; ``positions`` are below it.
        positions: (b, s) int64, position of each token; None: start, start + 1, ...
        attention_mask: bool, broadcastable to (b, 1, s, t), True where a query may attend; None is
            causal. A query that may attend to nothing gets the mean of all values instead of NaN.
    """
    end = start + length
    angles = bias = None
    if rotary is not None:
        # the whole table at once: growing it token by token would compute it again each time
        last = end if positions is None or not longest else 0  # padding has slots, no positions
        cos, sin = rotary.get(max(longest, last), like=like)
        rows = slice(start, end) if positions is None else positions
        angles = _angles(cos[rows]), _angles(sin[rows])
    if attention_mask is not None:
        bias = _bias(attention_mask, like)
    elif start > 0 and length > 1:
        mask = torch.ones(length, end, dtype=torch.bool, device=like.device)
        bias = _bias(mask.tril(diagonal=start), like)
    return ForwardContext(angles, bias, is_causal=bias is None and length > 1)


def _angles(rows: Tensor) -> Tensor:
    """(s, r) or (b, s, r) -> (1 or b, s, 1, 1, r)."""
    return (rows if rows.dim() == 3 else rows.unsqueeze(0))[:, :, None, None]


def _bias(mask: Tensor, like: Tensor) -> Tensor:
    """0 where ``mask`` is True and -inf elsewhere; a row without any True is 0 throughout."""
    seen = mask | ~mask.any(dim=-1, keepdim=True)
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill_(
        ~seen, float("-inf")
    )
