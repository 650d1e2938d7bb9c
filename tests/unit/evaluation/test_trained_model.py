"""Models that are read from a checkpoint without an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.checkpoint.loading import first_not_finite
from megatron.errors import CheckpointError
from megatron.evaluation import trained_model
from megatron.evaluation.trained_model import read_model
from megatron.neox_arguments import NeoXArgs, resolve
from megatron.tokenizer import build_tokenizer
from tests.generation_runs import FIELDS
from tests.interop.conversions import ALONE, random_weights, shape_of
from tests.process_group import process_group_of_one
from tools.hf.importing import write_model_checkpoint
from tools.hf.settings import resolve_model_fields

BIAS = "3.mlp.dense_h_to_4h.bias"
READING = {"train_micro_batch_size_per_gpu": 1, "train_iters": 1}


def write_model(folder: Path, *, spoiled_by: float | None = None) -> Path:
    shape = shape_of(FIELDS, 512)
    weights = random_weights(shape)
    if spoiled_by is not None:
        weights[BIAS][5] = spoiled_by
    return write_model_checkpoint(
        folder,
        shape,
        run_config=resolve_model_fields(FIELDS),
        read=weights.__getitem__,
        files={},
    )


def read(folder: Path) -> Any:
    config = resolve(NeoXArgs.from_dict({**FIELDS, **READING}), world_size=1)
    with process_group_of_one():
        return read_model(config, build_tokenizer(config), ALONE, folder=folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value, tmp_path):
    folder = write_model(tmp_path, spoiled_by=value)
    with pytest.raises(CheckpointError) as error:
        read(folder)
    assert str(error.value) == (
        f"{folder}: {BIAS} has values that are not finite; the model has diverged: choose an "
        "earlier checkpoint with iteration, or another model"
    )


def test_a_sound_model_is_read_and_waits_for_text(tmp_path):
    model = read(write_model(tmp_path))
    assert not model.training
    assert first_not_finite(model) is None


def test_all_ranks_refuse_what_one_of_them_holds(tmp_path, monkeypatch):
    folder = write_model(tmp_path)

    def agree(own: str | None) -> str:
        assert own is None  # what this rank has is sound
        return BIAS

    monkeypatch.setattr(trained_model, "agree", agree)
    with pytest.raises(CheckpointError, match=f"{BIAS} has values that are not finite"):
        read(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_large_values_of_a_small_type_are_finite(dtype):
    module = torch.nn.Linear(3, 2).to(dtype)
    with torch.no_grad():
        module.weight.fill_(60000.0)
        assert first_not_finite(module) is None
        module.bias[1] = float("nan")
    assert first_not_finite(module) == "bias"
