"""Which rank sits where: arithmetic that every group and DeepSpeed must agree on."""

from __future__ import annotations

import pytest
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from hypothesis import given
from hypothesis import strategies as st

from megatron.mpu import RankGrid

grids = st.builds(RankGrid, pipe=st.integers(1, 5), data=st.integers(1, 5), model=st.integers(1, 5))
KINDS = ("model_groups", "data_groups", "replica_groups")


@given(grid=grids)
def test_place_and_rank_are_inverse(grid):
    places = [grid.place(rank) for rank in range(grid.size)]
    assert [grid.rank(*place) for place in places] == list(range(grid.size))
    assert set(places) == {
        (p, d, m) for p in range(grid.pipe) for d in range(grid.data) for m in range(grid.model)
    }


@pytest.mark.parametrize("kind", KINDS)
@given(grid=grids)
def test_the_groups_of_a_kind_hold_every_rank_once(kind, grid):
    groups = getattr(grid, kind)()
    assert sorted(rank for group in groups for rank in group) == list(range(grid.size))


@given(grid=grids)
def test_groups_have_the_size_of_their_axes(grid):
    assert {len(group) for group in grid.model_groups()} == {grid.model}
    assert {len(group) for group in grid.data_groups()} == {grid.data}
    assert {len(group) for group in grid.replica_groups()} == {grid.model * grid.pipe}


@given(grid=grids)
def test_ranks_of_a_tensor_group_are_neighbours(grid):
    for group in grid.model_groups():
        assert group == list(range(group[0], group[0] + grid.model))


@given(grid=grids)
def test_a_tensor_group_and_a_data_group_share_one_rank_or_none(grid):
    for first in grid.model_groups():
        for second in grid.data_groups():
            shared = set(first) & set(second)
            assert len(shared) == int(grid.place(first[0])[0] == grid.place(second[0])[0])


@given(grid=grids)
def test_a_replica_holds_every_part_once_for_one_set_of_samples(grid):
    for group in grid.replica_groups():
        places = [grid.place(rank) for rank in group]
        assert len({data for _, data, _ in places}) == 1
        assert {(pipe, model) for pipe, _, model in places} == {
            (p, m) for p in range(grid.pipe) for m in range(grid.model)
        }


@given(grid=grids)
def test_deepspeed_puts_every_rank_at_the_same_place(grid):
    topology = PipeModelDataParallelTopology(num_pp=grid.pipe, num_mp=grid.model, num_dp=grid.data)
    for rank in range(grid.size):
        place = topology.get_coord(rank)
        assert (place.pipe, place.data, place.model) == grid.place(rank)
    assert topology.get_axis_comm_lists("data") == grid.data_groups()
    assert topology.get_axis_comm_lists("model") == grid.model_groups()


def test_eight_ranks_of_two_by_two_by_two():
    grid = RankGrid(pipe=2, data=2, model=2)
    assert grid.model_groups() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert grid.data_groups() == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert grid.replica_groups() == [[0, 1, 4, 5], [2, 3, 6, 7]]
