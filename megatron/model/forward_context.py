"""What all layers share in a forward pass: rotation angles, mask, causality, documents.

Shapes: b batch, s new positions, t all positions, r rotated part of the head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron.model.attention_span import Documents
from megatron.model.positional_embeddings import RotaryTable
from megatron.sizing.model_shape import ModelShape

__all__ = ["ForwardContext", "document_context", "make_context"]


@dataclass(frozen=True)
class ForwardContext:
    """Made once per pass in inference; in training each layer makes an equal one from views."""

    angles: tuple[Tensor, Tensor] | None
    """cos and sin, in the form that `rotate_` takes; None without rotary positions."""
    bias: Tensor | None
    """Added to the scores, broadcastable to (b, 1, s, t): 0 or -inf; None adds nothing."""
    is_causal: bool
    """Whether query i attends to the first i + 1 keys; False after earlier positions."""
    is_whole: bool = False
    """Whether rows begin at position 0 and have no mask of their own, so that only the span of a
    layer and ``documents`` hide anything."""
    documents: Documents | None = None
    """What hides earlier documents; only where ``is_whole``. None: each row is one document."""
    positions: Tensor | None = None
    """(b, s), positions given for inference; None: those after the cached ones."""
    longest: int = 0
    """Number of positions that the model supports."""
    bias_values: Tensor | None = None
    """Learned biases of all distances, see `LearnedBias`; None: each layer computes them."""

    def places(self, length: int, total: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Positions of ``length`` queries and of all ``total`` keys, whose differences are their
        distances: (b or 1, s) and (b or 1, t).

        After cached positions the rows may be padded on the left, and nothing else: the distance of
        two tokens is then that of their places.
        """
        places = torch.arange(total, device=device)[None]
        if self.positions is None:
            return places[:, total - length :], places
        if total == length:
            return self.positions, self.positions
        return self.positions, places - (total - 1 - self.positions[:, -1:])


def make_context(
    rotary: RotaryTable | None,
    length: int,
    *,
    like: Tensor,
    start: int = 0,
    longest: int = 0,
    positions: Tensor | None = None,
    attention_mask: Tensor | None = None,
    is_whole: bool = False,
    documents: Documents | None = None,
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
        is_whole: Whether these are all positions of the rows; then ``positions``, which may begin
            again with each document, do not change the distance of two tokens.
        documents: The documents of the rows, if they are hidden from each other.
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
    return ForwardContext(
        angles,
        bias,
        is_causal=bias is None and (is_whole or length > 1),
        is_whole=is_whole,
        documents=documents,
        positions=None if is_whole else positions,
        longest=longest,
    )


def document_context(
    config: ModelShape, rotary: RotaryTable | None, hidden: Tensor, offsets: Tensor
) -> ForwardContext:
    """Prepares a pass over whole rows of several documents.

    Args:
        config: Tells what documents change.
        rotary: The table of angles; None without rotary positions.
        hidden: A tensor of the model's dtype and device.
        offsets: (b, s) int64, tokens of its document before each token.
    """
    return make_context(
        rotary,
        offsets.shape[1],
        like=hidden,
        positions=offsets if config.reset_position_ids else None,
        is_whole=True,
        documents=Documents(offsets) if config.reset_attention_mask else None,
    )


def _angles(rows: Tensor) -> Tensor:
    """(s, r) or (b, s, r) -> (1 or b, s, 1, 1, r)."""
    return (rows if rows.dim() == 3 else rows.unsqueeze(0))[:, :, None, None]


def _bias(mask: Tensor, like: Tensor) -> Tensor:
    """0 where ``mask`` is True and -inf elsewhere; a row without any True is 0 throughout."""
    seen = mask | ~mask.any(dim=-1, keepdim=True)
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill_(
        ~seen, float("-inf")
    )
