"""Copies parts of a matrix that is cut into flat fragments; only the pages of these parts are read.

A saved shard is a matrix (rows, columns) whose flattened elements are cut into fragments at any
place. A fragment is a view of a memory map, so a slice of it reads nothing else.
"""

from __future__ import annotations

from torch import Tensor

from megatron.model.shard_blocks import Rectangle

__all__ = ["copy_from_fragment"]


def copy_from_fragment(fragment: Tensor, start: int, part: Rectangle, out: Tensor) -> None:
    """Copies what a fragment has of a rectangle.

    Args:
        fragment: The elements from ``start`` on of a flattened shard.
        start: Number of the first of them in the shard.
        part: A rectangle of the shard.
        out: The whole rectangle, (rows, columns), of which the elements in the fragment are
            overwritten.
    """
    position = max(start, part.start)
    end = min(start + fragment.shape[0], part.end)
    while position < end:
        row, column = divmod(position, part.row_length)
        column -= part.first_column
        if column < 0 or column >= part.num_columns:
            row += column >= part.num_columns
            position = row * part.row_length + part.first_column
            continue
        first, target_row = position - start, row - part.first_row
        num_rows = (end - position - part.num_columns) // part.row_length + 1 if column == 0 else 0
        if num_rows > 0:
            rows = fragment[first:].as_strided(
                (num_rows, part.num_columns),
                (part.row_length, 1),
                fragment.storage_offset() + first,
            )
            out[target_row : target_row + num_rows].copy_(rows)
            position = (row + num_rows) * part.row_length + part.first_column
        else:
            taken = min(part.num_columns - column, end - position)
            out[target_row, column : column + taken].copy_(fragment[first : first + taken])
            position += taken
