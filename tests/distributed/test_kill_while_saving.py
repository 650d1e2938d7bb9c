"""SIGKILL to a rank while a checkpoint is written or an old one deleted leaves a sound one."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron.checkpoint.format import CheckpointReader, checkpoint_steps, fragment_key
from megatron.checkpoint.loading import find_checkpoint
from megatron.checkpoint.runs import rank_file
from megatron.checkpoint.snapshot import Snapshot
from megatron.checkpoint.verification import verify
from megatron.checkpointing import CheckpointContents, CheckpointSaver
from megatron.engine.state import TrainState
from megatron.mpu import RankGrid
from tests.distributed.spawn import run_ranks
from tests.process_group import process_group_of_one

pytestmark = pytest.mark.distributed

RANKS = 2
ALL_REPLACED = 7
"""What rank 0 renames in a save: four files of JSON, the folder, latest, the old checkpoint."""


def snapshot_of(rank: int, num_ranks: int) -> Snapshot:
    """A vector of eight numbers that is cut over the ranks."""
    length = 8 // num_ranks
    offset = length * rank
    fragment = (rank_file(rank), 0, offset, length)
    return Snapshot(
        rank=rank,
        tensors={fragment_key("fp32", "bias", 0, offset): torch.arange(8.0)[offset:][:length]},
        parameters={"bias": {"shape": (8,), "tp_dim": None, "extent": 8, "fragments": [fragment]}},
        moments=(),
    )


def save(folder: Path, step: int, rank: int, num_ranks: int) -> None:
    """Saves a checkpoint and deletes the one before."""
    topology: Any = SimpleNamespace(rank=rank, grid=RankGrid(pipe=1, data=num_ranks, model=1))
    saver = CheckpointSaver(folder, topology, moment_names=(), keep_last=1)
    contents = CheckpointContents(
        state=TrainState(step=step),
        mixture=None,
        config_files={},
        resolved_config={"version": 2, "model": {"num_layers": 1}},
        extra={},
    )
    with pytest.MonkeyPatch.context() as patch:
        snapshot = snapshot_of(rank, num_ranks)
        patch.setattr("megatron.checkpointing.take_snapshot", lambda *_, **__: snapshot)
        saver.save(None, contents)


def save_and_die(folder: str, victim: int, function: str, call: int) -> None:
    """What a rank does: the victim dies before a call of a function of ``os``."""
    import torch.distributed as dist

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    save(Path(folder), 10, rank, RANKS)
    calls, original = 0, getattr(os, function)

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    if rank == victim:
        setattr(os, function, counted)
    save(Path(folder), 20, rank, RANKS)


@pytest.mark.parametrize(
    ("victim", "function", "call", "step"),
    [
        pytest.param(1, "fsync", 1, 10, id="one rank writes"),
        pytest.param(0, "replace", 5, 10, id="the folder gets its name", marks=pytest.mark.slow),
        pytest.param(
            0,
            "replace",
            ALL_REPLACED,
            20,
            id="the old one is taken out of force",
            marks=pytest.mark.slow,
        ),
        pytest.param(1, "unlink", 1, 20, id="one rank deletes"),
        pytest.param(0, "unlink", 2, 20, id="the first rank deletes", marks=pytest.mark.slow),
    ],
)
def test_a_killed_rank_leaves_a_sound_checkpoint(tmp_path, victim, function, call, step):
    arguments = {"folder": str(tmp_path), "victim": victim, "function": function, "call": call}
    results = run_ranks(
        "tests.distributed.test_kill_while_saving:save_and_die",
        RANKS,
        keywords=arguments,
        check=False,
        timeout_s=60,
    )
    assert results[victim].exit_code == -signal.SIGKILL
    for whole in checkpoint_steps(tmp_path):
        verify(tmp_path / f"global_step{whole}")
    with process_group_of_one():
        found = find_checkpoint(tmp_path, None, print)
        assert found == tmp_path / f"global_step{step}"
        assert torch.equal(CheckpointReader(found).read_logical("bias"), torch.arange(8.0))
        save(tmp_path, 30, 0, 1)
    assert {path.name for path in tmp_path.iterdir()} <= {
        "global_step10",  # of a kill before it was deleted
        "global_step30",
        "latest",
    }
