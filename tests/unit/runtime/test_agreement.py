"""What keeps one rank from going on becomes text, which all ranks learn."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from megatron.errors import CheckpointError
from megatron.runtime.agreement import agree, problem_of


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
