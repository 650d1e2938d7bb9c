"""Which tensors of theirs make a parameter of ours, and how its rows are divided among them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron.sizing.model_shape import ModelShape

__all__ = ["Names", "Rows", "Weight", "weights_of"]

Names = tuple[tuple[str, str | tuple[str, ...]], ...]
"""Our name and theirs, in the order of their files. {embedding}, {block}, {norm} and {output} are
our layer numbers, {layer} counts blocks from 0. Several names of theirs: a fused parameter."""


@dataclass(frozen=True)
class Rows:
    """How the rows of a fused parameter, ordered [groups, slots, width], make several tensors.

    Tensor i has ``slots[i]`` slots of each group; its rows are in the same order as ours.
    """

    groups: int
    slots: tuple[int, ...]
    width: int
    is_stacked: bool = False
    """Each tensor is one row of ours, and lacks our first dimension."""

    def ranges(self, part: int) -> Iterator[tuple[int, int]]:
        """Ranges [first, end) of our rows that make tensor ``part``, in its order."""
        first, size = sum(self.slots[:part]) * self.width, self.slots[part] * self.width
        for group in range(self.groups):
            start = group * self.group_size + first
            yield start, start + size

    def pieces(self, first: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Tensor, first and end of its rows, which make our rows [first, end) in this order."""
        for group in range(first // self.group_size, self.groups):
            start = group * self.group_size
            for part, slots in enumerate(self.slots):
                size = slots * self.width
                low, high = max(first, start), min(end, start + size)
                if low < high:
                    shift = group * size - start
                    yield part, low + shift, high + shift
                start += size
            if start >= end:
                return

    @property
    def group_size(self) -> int:
        """Rows of a group."""
        return sum(self.slots) * self.width


@dataclass(frozen=True)
class Weight:
    """A parameter of ours, and the tensors of theirs that it consists of."""

    ours: str
    theirs: tuple[str, ...]
    rows: Rows | None = None
    """None: one tensor, with the same rows."""

    def their_shape(self, part: int, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of tensor ``part`` if our parameter has ``shape``."""
        if self.rows is None:
            return tuple(shape)
        if self.rows.is_stacked:
            return tuple(shape[1:])
        return (self.rows.groups * self.rows.slots[part] * self.rows.width, *shape[1:])

    def our_shape(self, their_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of our parameter if the first tensor of theirs has ``their_shape``."""
        if self.rows is None:
            return tuple(their_shape)
        rest = their_shape if self.rows.is_stacked else their_shape[1:]
        return (self.rows.groups * self.rows.group_size, *rest)

    def ranges(self, part: int, shape: Sequence[int]) -> list[tuple[int, int]]:
        """Ranges [first, end) of our rows that make tensor ``part``, in its order."""
        if self.rows is None:
            return [(0, shape[0] if shape else 1)]
        return list(self.rows.ranges(part))

    def joined(self, tensors: Sequence[Tensor]) -> Tensor:
        """Our parameter, from all tensors of theirs."""
        if self.rows is None:
            return tensors[0]
        if self.rows.is_stacked:
            return torch.stack(list(tensors))
        num_rows = self.rows.groups * self.rows.group_size
        pieces = self.rows.pieces(0, num_rows)
        return torch.cat([tensors[part][first:end] for part, first, end in pieces])


def weights_of(names: Names, shape: ModelShape) -> list[Weight]:
    """All parameters of a network; includes biases that are switched off."""
    fixed = {
        "embedding": shape.embedding_name,
        "norm": shape.num_layers + 3,
        "output": shape.num_layers + 4,
    }
    weights: list[Weight] = []
    blocks = [pair for pair in names if "{block}" in pair[0]]
    for pair in names:
        if pair not in blocks:
            weights.append(_weight(pair, shape, **fixed))
        elif pair == blocks[0]:  # all of a block, then all of the next
            for layer in range(shape.num_layers):
                weights += (_weight(each, shape, block=layer + 2, layer=layer) for each in blocks)
    return weights


def _weight(
    pair: tuple[str, str | tuple[str, ...]], shape: ModelShape, **numbers: object
) -> Weight:
    ours, theirs = pair
    names = (theirs,) if isinstance(theirs, str) else theirs
    rows = None if isinstance(theirs, str) else _rows(ours, shape)
    return Weight(ours.format(**numbers), tuple(name.format(**numbers) for name in names), rows)


def _rows(ours: str, shape: ModelShape) -> Rows:
    """Rows of queries, keys and values, or of gate and input."""
    if ".query_key_value." in ours:
        queries = shape.num_attention_heads // shape.num_kv_heads
        return Rows(shape.num_kv_heads, (queries, 1, 1), shape.head_dim)
    return Rows(1, (1, 1), 1, is_stacked=True)
