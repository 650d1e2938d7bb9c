"""What keeps one rank from going on becomes text, which all ranks learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from megatron.errors import CheckpointError
from megatron.runtime.agreement import agree, problem_of, reduce_at_first
from tests.distributed.spawn import run_ranks


def fail(error: Exception):
    def action() -> None:
        raise error

    return action


def test_success_has_nothing_to_say():
    assert problem_of(lambda: None) is None


@pytest.mark.parametrize("error", [OSError("no space left"), CheckpointError("no space left")])
def test_what_went_wrong_is_returned_as_text(error):
    assert problem_of(fail(error)) == "no space left"


def test_a_file_that_safetensors_cannot_write_is_text_too(tmp_path):
    path = tmp_path / "missing" / "x.safetensors"
    problem = problem_of(lambda: save_file({"a": torch.zeros(1)}, path))
    assert problem is not None
    assert "No such file" in problem


def test_a_mistake_of_ours_passes_through():
    with pytest.raises(KeyError):
        problem_of(fail(KeyError("x")))


def test_only_the_errors_that_are_named_become_text():
    assert problem_of(fail(ValueError("x")), errors=(ValueError,)) == "x"
    with pytest.raises(OSError, match="x"):
        problem_of(fail(OSError("x")), errors=(ValueError,))


@pytest.mark.parametrize(
    ("problems", "expected"),
    [([None, None, None], None), ([None, "a", "b"], "a"), (["", None, "b"], "b")],
)
def test_all_ranks_learn_the_problem_of_the_first_that_has_one(monkeypatch, problems, expected):
    def gather(found: list, own: object, group: object) -> None:
        assert any(problems), "no text is sent while nothing is wrong"
        found[:] = problems

    def all_reduce(flag: torch.Tensor, op: object, group: object) -> None:
        flag.fill_(max(bool(problem) for problem in problems))

    monkeypatch.setattr(dist, "get_backend", lambda group: "gloo")
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    monkeypatch.setattr(dist, "get_world_size", lambda group: len(problems))
    monkeypatch.setattr(dist, "all_gather_object", gather)
    assert [agree(problem) for problem in problems] == [expected] * 3


@pytest.mark.distributed
@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_values_meet_in_a_tree_in_the_order_of_the_ranks(backend):
    results = run_ranks(
        "tests.unit.runtime.test_agreement:reduce_ranks", 5, keywords={"backend": backend}
    )
    assert results[0].value[:2] == [[0, 1, 2, 3, 4], 3]
    assert [result.value[0] for result in results[1:]] == [None] * 4
    # NCCL makes a communicator for each pair that does not send in batches
    assert [result.value[2] for result in results] == [[backend == "nccl"] * n for n in COUNTS]


COUNTS = [3, 1, 2, 1, 1]
"""How many values each of five ranks sends and receives."""


def reduce_ranks(backend: str) -> list[object]:
    """What a rank does: it returns what all have sent, and how values were combined and sent.

    All run over gloo; ``backend`` is what they believe.
    """
    dist.init_process_group("gloo")
    calls, in_batches = 0, list[bool]()

    def joined(parts: list[list[int]]) -> list[int]:
        nonlocal calls
        calls += 1
        return [number for part in parts for number in part]

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, use_batch: bool = False, **kwargs: Any) -> Any:
            in_batches.append(use_batch)
            return function(*args, use_batch=use_batch, **kwargs)

        return call

    with (
        patch.object(dist, "get_backend", lambda group: backend),
        patch.object(dist, "send_object_list", watched(dist.send_object_list)),
        patch.object(dist, "recv_object_list", watched(dist.recv_object_list)),
    ):
        return [reduce_at_first([dist.get_rank()], joined), calls, in_batches]


def test_other_backends_send_all_values_to_the_first_rank(monkeypatch):
    def gather_object(value: object, values: list, dst: int, group: object) -> None:
        values[:] = [value, "b", "c"]

    monkeypatch.setattr(dist, "get_backend", lambda group: "mpi")
    monkeypatch.setattr(dist, "get_rank", lambda group: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda group: 3)
    monkeypatch.setattr(dist, "gather_object", gather_object)
    assert reduce_at_first("a", "".join) == "abc"
