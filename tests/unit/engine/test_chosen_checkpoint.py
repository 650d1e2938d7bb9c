"""A checkpoint that is found damaged while it is loaded is passed over like any other."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron.engine.chosen_checkpoint import with_checkpoint
from megatron.errors import CheckpointError, DamagedCheckpointError
from tests.process_group import process_group_of_one
from tools.benchmark.fuzz.state_kinds import checkpoint


@pytest.fixture
def steps(tmp_path) -> list[Path]:
    """Checkpoints, the newest first."""
    folder = checkpoint(tmp_path)
    others = [shutil.copytree(folder, tmp_path / f"global_step{step}") for step in (9, 5)]
    (tmp_path / "latest").write_text("global_step9")
    return [*others, folder]


def load(steps: list[Path], num_damaged: int, *, iteration: int | None = None) -> Any:
    """Returns what was loaded, what was tried before, and what was printed."""
    saving = SimpleNamespace(load_path=str(steps[0].parent), save_path=None, iteration=iteration)
    config: Any = SimpleNamespace(saving=saving)
    tried: list[Path | None] = []
    said: list[str] = []

    def use(folder: Path | None) -> Path | None:
        tried.append(folder)
        if len(tried) <= num_damaged:
            raise DamagedCheckpointError(f"{folder}: checksum differs")
        return folder

    with process_group_of_one():
        return with_checkpoint(config, said.append, use), tried, said


@pytest.mark.parametrize("num_damaged", [0, 1, 2])
def test_the_newest_sound_one_is_loaded_and_each_damaged_one_named(steps, num_damaged):
    found, tried, said = load(steps, num_damaged)
    assert found == steps[num_damaged]
    assert tried == steps[: num_damaged + 1]
    assert said == [
        f"skipping a damaged checkpoint: {folder}: checksum differs"
        for folder in steps[:num_damaged]
    ]


def test_no_other_than_the_one_asked_for_is_loaded(steps):
    with pytest.raises(DamagedCheckpointError, match="global_step5: checksum differs"):
        load(steps, 1, iteration=5)


def test_nothing_is_loaded_if_all_are_damaged(steps):
    with pytest.raises(CheckpointError, match="every checkpoint is damaged: global_step9, glob"):
        load(steps, 3)
