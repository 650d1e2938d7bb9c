"""Requests are shared out evenly, completely, and with equal contexts together."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from megatron.errors import EvaluationStopped, TaskError
from megatron.eval_tasks.sharing import (
    agree_on_end,
    check_same_requests,
    gather_results,
    own_share,
)
from megatron.mpu import RankGrid, Topology

ALONE = Topology(RankGrid(1, 1, 1), 0, None, None, None)


@given(
    requests=st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 50)), max_size=30),
    size=st.integers(1, 5),
)
def test_shares_are_a_partition_that_keeps_equal_keys_together(requests, size):
    keys = [key for key, _ in requests]
    costs = [cost for _, cost in requests]
    shares = [own_share(keys, costs, rank=rank, size=size) for rank in range(size)]
    assert sorted(number for share in shares for number in share) == list(range(len(keys)))
    owners = {(keys[number], rank) for rank, share in enumerate(shares) for number in share}
    assert len(owners) == len(set(keys))
    assert all(share == sorted(share) for share in shares)


@given(costs=st.lists(st.integers(1, 50), min_size=1, max_size=30), size=st.integers(1, 5))
def test_no_replica_has_more_than_a_fair_part_and_one_request(costs, size):
    shares = [own_share(range(len(costs)), costs, rank=rank, size=size) for rank in range(size)]
    loads = [sum(costs[number] for number in share) for share in shares]
    assert max(loads) <= sum(costs) / size + max(costs)


def test_an_odd_number_of_equal_requests_differs_by_one():
    shares = [own_share(range(7), [1] * 7, rank=rank, size=2) for rank in (0, 1)]
    assert sorted(map(len, shares)) == [3, 4]


def test_fewer_requests_than_replicas_leave_some_without():
    shares = [own_share(["a"], [1], rank=rank, size=3) for rank in range(3)]
    assert sorted(shares) == [[], [], [0]]


def test_one_process_needs_no_process_group():
    check_same_requests([("a", "b")], "loglikelihood", ALONE)
    assert gather_results({1: "b", 0: "a"}, ALONE) == ["a", "b"]
    assert gather_results({}, ALONE) == []


@pytest.mark.parametrize(
    ("shares", "error"),
    [
        ([{0: 1}, TaskError("an ending")], "^an ending$"),
        ([EvaluationStopped(), TaskError("an ending")], "^an ending$"),
        ([{0: 1}, EvaluationStopped()], "^$"),
    ],
)
def test_what_keeps_one_replica_from_its_share_is_raised_on_all(shares, error, monkeypatch):
    def gather(found: list[Any], own: Any, group: Any) -> None:
        found[:] = pickle.loads(pickle.dumps(shares))

    monkeypatch.setattr(dist, "get_world_size", lambda group: 2)
    monkeypatch.setattr(dist, "all_gather_object", gather)
    for rank, own in enumerate(shares):
        with pytest.raises(type(shares[1]), match=error):
            gather_results(own, Topology(RankGrid(1, 2, 1), rank, None, None, None))


def test_costs_decide_and_not_the_order():
    assert own_share("abc", [1, 9, 1], rank=0, size=2) == [1]
    assert own_share("abc", [1, 9, 1], rank=1, size=2) == [0, 2]


class World:
    """Ranks as threads; whoever gathers waits for all others."""

    def __init__(self, size: int, monkeypatch: pytest.MonkeyPatch):
        self.size = size
        self._own = threading.local()
        self._barrier = threading.Barrier(size, timeout=20)
        self._board: list[Any] = [None] * size
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_world_size", lambda group=None: size)
        monkeypatch.setattr(dist, "all_gather_object", self._gather)

    def _gather(self, found: list[Any], own: Any, group: Any) -> None:
        self._board[self._own.rank] = own
        self._barrier.wait()
        found[:] = self._board
        self._barrier.wait()

    def run(self, program: Callable[[int], Any]) -> list[Any]:
        def of_rank(rank: int) -> Any:
            self._own.rank = rank
            return program(rank)

        with ThreadPoolExecutor(self.size) as threads:
            return list(threads.map(of_rank, range(self.size)))


@pytest.mark.parametrize("failing", [(), (1,), (0, 2)])
def test_a_task_that_fails_on_some_ranks_is_over_on_all_and_the_next_one_begins(
    failing, monkeypatch
):
    def program(rank: int) -> list[str | None]:
        topology = Topology(RankGrid(1, 3, 1), rank, None, None, None)
        ends = []
        for task in ("first", "second"):
            problem = f"{task} fails on {rank}" if rank in failing and task == "first" else None
            if problem is None:
                try:
                    for number in range(3):
                        check_same_requests([task, number], "loglikelihood", topology)
                except TaskError as error:
                    problem = str(error)
            ends.append(agree_on_end(problem))
        return ends

    first = f"first fails on {failing[0]}" if failing else None
    assert World(3, monkeypatch).run(program) == [[first, None]] * 3


def test_ranks_with_different_requests_all_learn_of_it(monkeypatch):
    def program(rank: int) -> str:
        topology = Topology(RankGrid(1, 2, 1), rank, None, None, None)
        with pytest.raises(TaskError, match="different requests") as raised:
            check_same_requests([rank], "loglikelihood", topology)
        return str(raised.value).partition(":")[0]

    assert World(2, monkeypatch).run(program) == ["loglikelihood"] * 2
