"""Which elements of a whole parameter a range of one rank's shard is.

A parameter is seen as a matrix whose columns tensor parallelism cuts: the dimensions before the cut
one are its rows, the cut one and those after it its columns. So a range of a flattened shard is at
most three rectangles: the rest of a row, whole rows of the shard, and the beginning of a row. The
first initial values and the loading of a checkpoint both work on such rectangles, so that a rank
draws and reads only what it has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Block", "Rectangle", "blocks_of_range"]


@dataclass(frozen=True)
class Rectangle:
    """Neighbouring columns of neighbouring rows of a matrix."""

    first_row: int
    num_rows: int
    first_column: int
    num_columns: int
    row_length: int
    """Columns of the whole matrix."""

    @property
    def start(self) -> int:
        """Number of its first element in the flattened matrix."""
        return self.first_row * self.row_length + self.first_column

    @property
    def end(self) -> int:
        """Number of the element after its last one in the flattened matrix."""
        last_row = self.first_row + self.num_rows - 1
        return last_row * self.row_length + self.first_column + self.num_columns


@dataclass(frozen=True)
class Block:
    """A rectangle of the whole parameter, and its place in a range of a shard."""

    start: int
    """First element in the range."""
    width: int
    """Elements of a row in the range: the columns of ``source``, and padding after them."""
    source: Rectangle


def blocks_of_range(
    logical_shape: tuple[int, ...],
    shard_shape: tuple[int, ...],
    tp_dim: int | None,
    *,
    tp_rank: int,
    offset: int,
    length: int,
) -> Iterator[Block]:
    """Yields the elements [offset, offset + length) of a flattened shard; padding is left out.

    Args:
        logical_shape: Shape of the whole parameter, without padding.
        shard_shape: Shape of a shard, with padding.
        tp_dim: Dimension that is cut; None for a parameter that every rank has as a whole.
        tp_rank: Number of the shard.
        offset: First element of the range.
        length: Elements of the range.
    """
    dim = tp_dim or 0
    inner = math.prod(logical_shape[dim + 1 :])
    row_length, width = logical_shape[dim] * inner, shard_shape[dim] * inner
    first_column = 0 if tp_dim is None else tp_rank * width
    known = max(0, min(width, row_length - first_column))
    position, end = offset, offset + length
    while position < end:
        row, column = divmod(position, width)
        num_rows = (end - position) // width if column == 0 else 0
        here = width if num_rows else min(width - column, end - position)
        num_rows = max(1, num_rows)
        num_columns = max(0, min(column + here, known) - column)
        if num_columns:
            source = Rectangle(row, num_rows, first_column + column, num_columns, row_length)
            yield Block(position - offset, here, source)
        position += num_rows * here
