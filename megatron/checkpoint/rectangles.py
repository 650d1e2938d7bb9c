"""Copies parts of a matrix that is cut into flat fragments; only these parts are read.

A saved shard is a matrix (rows, columns) whose flattened elements are cut into fragments at any
place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from megatron.model.shard_blocks import Rectangle

__all__ = ["copy_from_fragment"]

_PIECE = 1 << 22
"""Elements that are read at once: 16 MiB."""
_SMALL_GAP = 1 << 12
"""Elements between two rows (16 KiB) that are read as well, since two reads take longer."""


@dataclass(frozen=True)
class _Strip:
    """Neighbouring rows of a rectangle, or a part of one row, that a fragment has."""

    start: int
    """First element in the flattened shard."""
    num_rows: int
    num_columns: int
    row: int
    """First row in the rectangle."""
    column: int
    """First column in the rectangle."""


def copy_from_fragment(
    read: Callable[[int, int], Tensor], start: int, length: int, part: Rectangle, out: Tensor
) -> None:
    """Copies what a fragment has of a rectangle.

    Args:
        read: Returns the elements [first, end) of the fragment.
        start: Number of the fragment's first element in the flattened shard.
        length: Elements of the fragment.
        part: A rectangle of the shard.
        out: The whole rectangle, (rows, columns), of which the elements in the fragment are
            overwritten.
    """
    for strip in _strips(start, start + length, part):
        first = strip.start - start
        span = (strip.num_rows - 1) * part.row_length + strip.num_columns
        values = read(first, first + span)
        rows = out[strip.row : strip.row + strip.num_rows]
        rows = rows[:, strip.column : strip.column + strip.num_columns]
        rows.copy_(values.as_strided(rows.shape, (part.row_length, 1), values.storage_offset()))


def _strips(start: int, end: int, part: Rectangle) -> Iterator[_Strip]:
    """Cuts what the elements [start, end) of a shard have of a rectangle into strips."""
    is_dense = part.row_length - part.num_columns <= _SMALL_GAP
    rows_at_once = _PIECE // part.row_length if is_dense else 1
    position, end = max(start, part.start), min(end, part.end)
    while position < end:
        row, column = divmod(position, part.row_length)
        column -= part.first_column
        if column < 0 or column >= part.num_columns:
            row += column >= part.num_columns
            position = row * part.row_length + part.first_column
            continue
        whole_rows = (end - position - part.num_columns) // part.row_length + 1
        num_rows = min(whole_rows, rows_at_once) if column == 0 else 0
        place = row - part.first_row
        if num_rows > 1:
            yield _Strip(position, num_rows, part.num_columns, place, 0)
            position = (row + num_rows) * part.row_length + part.first_column
        else:
            taken = min(part.num_columns - column, end - position, _PIECE)
            yield _Strip(position, 1, taken, place, column)
            position += taken
