"""Damage that one rank finds while it loads leads all ranks to the checkpoint before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.distributed.many_runs import train_all
from tests.distributed.runs import assert_same_state, curve
from tests.distributed.spawn import run_ranks
from tests.tiny import write_tiny_corpus

pytestmark = pytest.mark.distributed

SAVED_AT, LAST = 3, 6
DAMAGED = {0: "fp32|", 1: "exp_avg|", 3: "exp_avg_sq|"}
"""Stage of ZeRO -> what is damaged in the file of the second rank."""


def keys_of(stage: int) -> dict[str, object]:
    """Dropout, so that random states must continue too."""
    return {
        "zero_optimization": {"stage": stage},
        "checkpoint_factor": SAVED_AT,
        "train_iters": LAST,
        "hidden_dropout": 0.1,
    }


def flip_a_bit(path: Path, kind: str) -> str:
    """Changes a bit of the first tensor of a kind; returns the name of the tensor."""
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    name = next(name for name in header if name.startswith(kind))
    content[start + header[name]["data_offsets"][0]] ^= 1
    path.write_bytes(content)
    return name


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Finished runs, and runs that continue copies of them whose last checkpoint is damaged."""
    folder = tmp_path_factory.mktemp("damaged")
    corpus = write_tiny_corpus(folder / "corpus")
    train_all(corpus, folder, 2, {f"straight{stage}": keys_of(stage) for stage in DAMAGED})
    for stage, kind in DAMAGED.items():
        shutil.copytree(folder / f"straight{stage}/run", folder / f"again{stage}/run")
        flip_a_bit(folder / f"again{stage}/run/global_step{LAST}/rank_00001.safetensors", kind)
    train_all(corpus, folder, 2, {f"again{stage}": keys_of(stage) for stage in DAMAGED})
    shutil.copytree(folder / "straight1/run", folder / "asked/run")
    flip_a_bit(folder / f"asked/run/global_step{LAST}/rank_00001.safetensors", "fp32|")
    return folder


@pytest.mark.parametrize("stage", DAMAGED)
def test_the_run_continues_from_the_checkpoint_before_to_the_same_end(folder, stage):
    again, straight = folder / f"again{stage}", folder / f"straight{stage}"
    assert curve(again / "run.yml") == curve(straight / "run.yml")
    assert_same_state(again / f"run/global_step{LAST}", straight / f"run/global_step{LAST}")


def test_both_ranks_refuse_the_damaged_checkpoint_that_is_asked_for(folder):
    config = json.loads((folder / "straight1/run.yml").read_text())
    run = str(folder / "asked/run")
    file = folder / "asked/run.yml"
    file.write_text(json.dumps({**config, "save": run, "load": run, "iteration": LAST}))
    results = run_ranks(
        "tests.distributed.test_damaged_tensors:error_of", 2, keywords={"file": str(file)}
    )
    first, second = (result.value for result in results)
    assert first == second
    assert f"{run}/global_step{LAST}/rank_00001.safetensors: fp32|" in first
    assert first.endswith("checksum differs; the file is damaged")


def error_of(file: str) -> str:
    """What a rank does: it returns the error with which its run ends."""
    from megatron.errors import CheckpointError
    from tests.distributed.many_runs import train_files

    try:
        train_files([file])
    except CheckpointError as error:
        return str(error)
    return "none"
