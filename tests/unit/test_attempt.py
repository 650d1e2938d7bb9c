"""What a file may cause becomes text; our own mistakes pass through."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from megatron.errors import CheckpointError
from megatron.runtime.agreement import attempt


def fail(error: Exception):
    def action() -> None:
        raise error

    return action


def test_success_has_nothing_to_say():
    assert attempt(lambda: None) is None


@pytest.mark.parametrize("error", [OSError("no space left"), CheckpointError("no space left")])
def test_what_went_wrong_is_returned_as_text(error):
    assert attempt(fail(error)) == "no space left"


def test_a_file_that_safetensors_cannot_write_is_text_too(tmp_path):
    path = tmp_path / "missing" / "x.safetensors"
    problem = attempt(lambda: save_file({"a": torch.zeros(1)}, path))
    assert problem is not None
    assert "No such file" in problem


def test_a_mistake_of_ours_passes_through():
    with pytest.raises(KeyError):
        attempt(fail(KeyError("x")))
