"""What a query may attend to, as far as its layer and its documents decide it.

Shapes: b batch, s sequence, n query heads of this rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from megatron.model.relative_bias import RelativeBias
from megatron.sizing.model_shape import ModelShape

__all__ = ["EVERYTHING", "AttentionSpan", "Documents", "Piece", "Reach", "layer_spans"]

_SHORT = 128
"""Neighbouring documents of so many tokens together are computed at once."""

_Position = TypeVar("_Position", int, Tensor)


class Reach(NamedTuple):
    """A query sees its own block up to itself, and ``num_blocks`` blocks before it.

    With blocks of one token this is a sliding window: ``num_blocks`` tokens, and the query's own.
    """

    num_blocks: int
    block_size: int

    def first(self, position: _Position) -> _Position:
        """First position that a query at ``position`` sees; may be negative."""
        return position // self.block_size * self.block_size - self.num_blocks * self.block_size


@dataclass(frozen=True)
class AttentionSpan:
    """How far back the queries of a layer see, and the bias of their scores by distance."""

    reach: Reach | None = None
    """None: to the beginning."""
    bias: RelativeBias | None = None
    kept: dict[Any, Tensor] = field(default_factory=dict, compare=False, repr=False)
    """Biases that are not learned, which later passes use again."""

    @property
    def is_plain(self) -> bool:
        """Whether a query sees all earlier tokens without a bias."""
        return self.reach is None and self.bias is None

    def depth(self, positions: Tensor) -> Tensor:
        """Number of tokens before each position that a query there sees."""
        if self.reach is None:
            return positions
        return positions - self.reach.first(positions).clamp(min=0)


EVERYTHING = AttentionSpan()
"""All earlier tokens, without a bias."""


def layer_spans(config: ModelShape, bias: RelativeBias | None) -> Sequence[AttentionSpan]:
    """The span of each layer; equal ones are one object."""
    reaches = config.attention_reach or (None,) * config.num_layers
    # a checkpoint's JSON has lists in place of tuples
    keys = [None if reach is None else Reach(*reach) for reach in reaches]
    spans = {key: AttentionSpan(key, bias) for key in keys}
    return [spans[key] for key in keys]


class Piece(NamedTuple):
    """Neighbouring tokens of the flattened (b * s) whose documents lie inside."""

    start: int
    end: int
    is_one_document: bool


@dataclass(frozen=True)
class Documents:
    """The documents of the rows of a batch."""

    offsets: Tensor
    """(b, s) int64, number of tokens of its document before each token."""
    kept: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    """What one layer computes from them and others use again."""

    @cached_property
    def pieces(self) -> list[Piece]:
        """All tokens in pieces: one document, or several that are short. Waits for the device."""
        flat = self.offsets.flatten()
        starts = torch.nonzero(flat == 0).flatten().tolist()
        pieces = [Piece(start, end, True) for start, end in pairwise((*starts, flat.shape[0]))]
        merged = pieces[:1]
        for piece in pieces[1:]:
            if piece.end - merged[-1].start <= _SHORT:
                merged[-1] = Piece(merged[-1].start, piece.end, False)
            else:
                merged.append(piece)
        return merged
