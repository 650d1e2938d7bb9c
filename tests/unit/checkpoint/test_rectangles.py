"""What a fragment has of a rectangle is copied, in pieces of any size, and little else is read."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megatron.checkpoint import rectangles
from megatron.checkpoint.rectangles import copy_from_fragment
from megatron.model.shard_blocks import Rectangle


@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 9),
    ends=st.tuples(*[st.floats(0, 1)] * 6),
    piece=st.integers(1, 40),
    gap=st.integers(0, 9),
)
@settings(max_examples=200)
def test_a_rectangle_is_copied_from_any_fragment(rows, columns, ends, piece, gap):
    whole = torch.arange(float(rows * columns)).view(rows, columns)
    first_row, end_row = sorted(int(rows * end) for end in ends[:2])
    first_column, end_column = sorted(int(columns * end) for end in ends[2:4])
    start, end = sorted(int(rows * columns * end) for end in ends[4:])
    size = end_row - first_row, end_column - first_column
    if 0 in size:
        return
    part = Rectangle(first_row, size[0], first_column, size[1], columns)
    fragment, longest = whole.flatten()[start:end], 0

    def read(first: int, last: int) -> Tensor:
        nonlocal longest
        assert 0 <= first < last <= len(fragment)
        longest = max(longest, last - first)
        return fragment[first:last].clone()

    out = torch.full(size, -1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rectangles, "_PIECE", piece)
        patch.setattr(rectangles, "_SMALL_GAP", gap)
        copy_from_fragment(read, start, end - start, part, out)
    numbers = torch.arange(rows * columns).view(rows, columns)
    is_there = ((numbers >= start) & (numbers < end))[first_row:end_row, first_column:end_column]
    expected = whole[first_row:end_row, first_column:end_column].where(is_there, torch.tensor(-1.0))
    assert torch.equal(out, expected)
    assert longest <= piece
