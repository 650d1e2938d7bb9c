"""Whatever happens while a checkpoint is saved, a sound one is in force afterwards."""

from __future__ import annotations

import json
import os
import queue
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron import checkpointing
from megatron.checkpoint.format import checkpoint_steps, fragment_key
from megatron.checkpoint.loading import find_checkpoint
from megatron.checkpoint.snapshot import Snapshot
from megatron.checkpoint.verification import verify
from megatron.checkpointing import (
    CheckpointContents,
    CheckpointSaver,
    undo_interrupted_replacement,
)
from megatron.engine.state import TrainState
from megatron.errors import CheckpointError
from megatron.hooks.checkpoint import CheckpointHook
from megatron.mpu import RankGrid
from megatron.neox_arguments.sections import Saving
from tests.process_group import process_group_of_one
from tools.benchmark.fuzz.state_kinds import checkpoint
from tools.reshard_checkpoint import reshard

FRAGMENT = ("rank_00000.safetensors", 0, 0, 4)

pytestmark = pytest.mark.usefixtures("one_rank")


@pytest.fixture
def one_rank(monkeypatch) -> Iterator[None]:
    snapshot = Snapshot(
        rank=0,
        tensors={fragment_key("fp32", "bias", 0, 0): torch.arange(4.0)},
        parameters={"bias": {"shape": (4,), "tp_dim": None, "extent": 4, "fragments": [FRAGMENT]}},
        moments=(),
    )
    monkeypatch.setattr(checkpointing, "take_snapshot", lambda *_, **__: snapshot)
    with process_group_of_one():
        yield


def make_saver(save: Path, **options: Any) -> CheckpointSaver:
    topology: Any = SimpleNamespace(rank=0, grid=RankGrid(pipe=1, data=1, model=1))
    return CheckpointSaver(save, topology, moment_names=(), **options)


def contents(step: int, name: str = "") -> CheckpointContents:
    return CheckpointContents(
        state=TrainState(step=step),
        mixture=None,
        config_files={},
        resolved_config={"version": 2, "model": {"num_layers": 1}},
        extra={"name": name},
    )


def newest(save: Path) -> Path | None:
    return find_checkpoint(save, None, lambda line: None)


# a run that went back to an earlier iteration


def test_the_checkpoint_just_saved_stays_whatever_lies_beyond_it(tmp_path):
    saver = make_saver(tmp_path)
    for step in (10, 20, 30):
        saver.save(None, contents(step))
    again = make_saver(tmp_path, keep_last=1)  # continued from 10
    again.save(None, contents(15))
    assert checkpoint_steps(tmp_path) == [15, 20, 30]
    assert newest(tmp_path) == tmp_path / "global_step15"
    again.save(None, contents(25))
    assert checkpoint_steps(tmp_path) == [25, 30]
    assert newest(tmp_path) == tmp_path / "global_step25"


def test_a_checkpoint_beyond_latest_is_not_loaded_where_latest_is_gone(tmp_path):
    saver = make_saver(tmp_path)
    for step in (10, 20, 30):
        saver.save(None, contents(step))
    (tmp_path / "latest").write_text("global_step25")
    said: list[str] = []
    assert find_checkpoint(tmp_path, None, said.append) == tmp_path / "global_step20"
    (line,) = said
    assert "global_step25" in line


# kills and failing disks


class Killed(BaseException):
    """Stands in for SIGKILL: nothing catches it."""


@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("moment", range(7))
@pytest.mark.parametrize("step", [10, 20], ids=["same step", "next step"])
def test_a_kill_at_any_rename_leaves_a_sound_checkpoint(
    tmp_path, monkeypatch, step, moment, is_done
):
    make_saver(tmp_path, keep_last=1).save(None, contents(10, "old"))
    rename, calls = os.replace, 0

    def replace(source: Any, target: Any) -> None:
        nonlocal calls
        calls += 1
        if calls <= moment:
            rename(source, target)
            return
        if is_done and calls == moment + 1:
            rename(source, target)
        raise Killed

    with monkeypatch.context() as patch, suppress(Killed):  # the last one ends no save
        patch.setattr(os, "replace", replace)
        make_saver(tmp_path, keep_last=1).save(None, contents(step, "new"))
    undo_interrupted_replacement(tmp_path)
    found = newest(tmp_path)
    assert found is not None
    verify(found)
    assert json.loads((found / "state.json").read_text())["name"] in ("old", "new")
    make_saver(tmp_path, keep_last=1).save(None, contents(30))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["global_step30", "latest"]


def test_a_replacement_that_fails_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    saver = make_saver(tmp_path)
    saver.save(None, contents(10, "old"))
    rename = os.replace

    def replace(source: Any, target: Any) -> None:
        if str(source).endswith("global_step10.tmp"):
            raise OSError(28, "No space left on device")
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(CheckpointError, match="No space left"):
            saver.save(None, contents(10, "new"))
    found = newest(tmp_path)
    assert found is not None
    assert json.loads((found / "state.json").read_text())["name"] == "old"


def test_an_old_checkpoint_that_cannot_be_removed_does_not_end_the_run(
    tmp_path, monkeypatch, caplog
):
    saver = make_saver(tmp_path, keep_last=1)
    saver.save(None, contents(10))
    rename = os.replace

    def replace(source: Any, target: Any) -> None:
        if str(target).endswith("global_step10.old.tmp"):
            raise PermissionError(13, "Permission denied")
        rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    saver.save(None, contents(20))
    assert newest(tmp_path) == tmp_path / "global_step20"
    assert "keep_last_n_checkpoints: could not delete" in caplog.text


# in the background


@pytest.fixture
def disk(monkeypatch) -> Callable[[bool], None]:
    """Fills the disk, or frees it."""
    write, full = checkpointing.write_snapshot, threading.Event()

    def write_if_there_is_room(*arguments: Any) -> dict[str, Any]:
        if full.is_set():
            raise OSError(28, "No space left on device")
        return write(*arguments)

    monkeypatch.setattr(checkpointing, "write_snapshot", write_if_there_is_room)
    return lambda is_full: full.set() if is_full else full.clear()


def test_a_failure_in_the_background_is_told_at_once_and_raised_in_the_end(tmp_path, disk):
    told: queue.Queue[str] = queue.Queue()
    saver = make_saver(tmp_path, in_background=True, on_failed=told.put)
    disk(True)
    saver.save(None, contents(10))
    assert "global_step10: could not save" in told.get(timeout=10)
    with pytest.raises(CheckpointError, match="global_step10: could not save"):
        saver.wait()
    saver.wait()  # once


def test_a_failure_in_the_background_does_not_cost_the_next_checkpoint(tmp_path, disk):
    saver = make_saver(tmp_path, in_background=True)
    disk(True)
    saver.save(None, contents(10))
    with pytest.raises(CheckpointError, match="global_step20: could not save"):
        saver.save(None, contents(20))  # in the foreground, since the one before failed
    saver.save(None, contents(30))
    disk(False)
    saver.save(None, contents(40))
    saver.wait()
    assert newest(tmp_path) == tmp_path / "global_step40"


# what training asks for


def make_hook(save: Path, *, is_saved: bool = False) -> CheckpointHook:
    config: Any = SimpleNamespace(
        saving=Saving(
            save_path=str(save),
            load_path=None,
            save_copy=None,
            load_copy=None,
            factor=None,
            extra_steps=(),
        ),
        schedule=SimpleNamespace(train_iters=99),
        files={"z.yml": "", "a.yml": ""},
        to_dict=dict,
    )
    runner: Any = SimpleNamespace(
        topology=SimpleNamespace(rank=0, grid=RankGrid(pipe=1, data=1, model=1)),
        engine=None,
        loss_scaler_state=dict,
    )
    source: Any = SimpleNamespace(samples_by_domain={"code": 12})
    mixture: Any = SimpleNamespace(state_dict=dict)
    logger: Any = SimpleNamespace(save=lambda step, folder: None, warning=print, say=print)
    return CheckpointHook(
        runner, source, mixture, config, logger, moment_names=(), is_saved=is_saved
    )


def test_the_end_is_saved_unless_the_save_folder_holds_it_already(tmp_path):
    state = TrainState(step=7)
    for is_saved, steps in ((True, []), (False, [7])):
        hook = make_hook(tmp_path, is_saved=is_saved)
        hook.at_start(state)
        hook.at_end(state)
        assert checkpoint_steps(tmp_path) == steps


def test_a_checkpoint_names_the_yaml_files_in_the_order_given(tmp_path):
    make_hook(tmp_path).save(TrainState(step=7))
    content = json.loads((tmp_path / "global_step7/state.json").read_text())
    assert content["config_files"] == ["z.yml", "a.yml"]


@pytest.mark.parametrize(
    ("mask", "of_file", "of_folder"), [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750)]
)
def test_files_and_folders_of_a_checkpoint_have_the_mode_that_umask_gives(
    tmp_path, mask, of_file, of_folder
):
    before = os.umask(mask)
    try:
        make_saver(tmp_path / "run").save(None, contents(10))
        imported = checkpoint(tmp_path / "imported")
        reshard(imported, tmp_path / "again")
    finally:
        os.umask(before)
    entries = [entry for entry in tmp_path.rglob("*") if not entry.name.startswith("rng_")]
    assert len(entries) > 15
    modes = {(entry.is_dir(), stat.S_IMODE(entry.stat().st_mode)) for entry in entries}
    assert modes == {(False, of_file), (True, of_folder)}
