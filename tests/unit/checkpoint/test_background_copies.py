"""Copies in the background: in order, tried again, and never an error of the run."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron.checkpoint.copies import BackgroundCopies, fetch_checkpoint, open_copies
from megatron.checkpoint.remote import RemoteError, RemoteFolder
from megatron.errors import CheckpointError
from tests.process_group import process_group_of_one
from tests.unit.checkpoint.test_remote_folder import checkpoint, contents

NUMBERS = itertools.count()
pytestmark = pytest.mark.timeout(60)


class Remote:
    """Stands in for an address; fails as often as it is told."""

    key, address = "save_copy", "memory://stand-in"

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.uploaded: list[int] = []
        self.may_upload = threading.Event()
        self.may_upload.set()

    def upload(self, step: int, folder: Path, *, done: set[str]) -> None:
        assert self.may_upload.wait(30)
        if self.failures:
            self.failures -= 1
            raise RemoteError("save_copy: memory://stand-in: cannot be written")
        self.uploaded.append(step)

    def latest(self) -> int | None:
        return max(self.uploaded, default=None)


def copies_to(remote: Any, **options: Any) -> tuple[BackgroundCopies, list[str], list[str]]:
    warned: list[str] = []
    told: list[str] = []
    copies = BackgroundCopies(remote, warn=warned.append, tell=told.append, **options)
    return copies, warned, told


def test_copies_are_made_in_order_while_training_continues(tmp_path):
    remote = Remote()
    copies, warned, told = copies_to(remote)
    remote.may_upload.clear()
    copies.add(1, tmp_path / "global_step1")
    copies.add(2, tmp_path / "global_step2")
    assert copies.is_waiting(1)
    assert copies.is_waiting(2)
    assert not copies.is_waiting(3)
    remote.may_upload.set()
    copies.wait()
    assert remote.uploaded == [1, 2]
    assert not copies.is_waiting(2)
    assert not warned
    assert told[-1] == "copied global_step2 to memory://stand-in"
    copies.add(3, tmp_path / "global_step3")
    copies.wait()
    assert remote.uploaded == [1, 2, 3]


def test_a_failure_is_a_warning_and_is_tried_again(tmp_path):
    remote = Remote(failures=2)
    copies, warned, _ = copies_to(remote, delays_s=(0.01, 0.01, 0.01))
    copies.add(1, tmp_path / "global_step1")
    copies.wait()
    assert remote.uploaded == [1]
    assert len(warned) == 2
    assert "attempt 1 to copy global_step1 failed" in warned[0]
    assert "trying again" in warned[0]


def test_after_the_last_attempt_the_local_folder_is_named_and_later_copies_are_made(tmp_path):
    remote = Remote(failures=3)
    copies, warned, _ = copies_to(remote, delays_s=(100.0, 100.0))
    copies.add(1, tmp_path / "global_step1")
    copies.wait()  # a run that ends does not wait 200 s
    copies.add(2, tmp_path / "global_step2")
    copies.wait()
    assert remote.uploaded == [2]
    assert f"{tmp_path / 'global_step1'} is complete; copy it" in warned[-1]


def test_many_waiting_checkpoints_are_reported(tmp_path):
    remote = Remote()
    copies, warned, _ = copies_to(remote)
    remote.may_upload.clear()
    for step in (1, 2, 3):
        copies.add(step, tmp_path / f"global_step{step}")
    remote.may_upload.set()
    copies.wait()
    assert len(warned) == 1
    assert "3 checkpoints wait" in warned[0]


def test_only_a_checkpoint_that_the_address_lacks_is_copied_at_a_start(tmp_path):
    remote = Remote()
    copies, _, _ = copies_to(remote)
    for step in (5, 5, 4):
        copies.add_if_missing(step, tmp_path / f"global_step{step}")
        copies.wait()
    assert remote.uploaded == [5]


@pytest.fixture
def address() -> str:
    return f"memory://copies{next(NUMBERS)}/run"


@pytest.fixture(autouse=True)
def group():
    with process_group_of_one():
        yield


def config_of(save: Path | None, load: Path | None = None, **saving: Any) -> Any:
    values = {"save_copy": None, "load_copy": None, "iteration": None, "finetune": False}
    places = {"save_path": save and str(save), "load_path": load and str(load)}
    return SimpleNamespace(saving=SimpleNamespace(**{**values, **places, **saving}))


def upload(address: str, folder: Path, *steps: int) -> None:
    for step in steps:
        RemoteFolder("save_copy", address).upload(step, checkpoint(folder, step), done=set())


def test_the_latest_checkpoint_of_an_address_is_fetched(address, tmp_path):
    upload(address, tmp_path / "elsewhere", 3, 6)
    told: list[str] = []
    load = tmp_path / "here"
    fetch_checkpoint(config_of(None, load, load_copy=address), told.append)
    assert contents(load / "global_step6") == contents(tmp_path / "elsewhere/global_step6")
    assert not (load / "global_step3").exists()
    assert told == [f"load: copying global_step6 from {address} to {load}"]
    fetch_checkpoint(config_of(None, load, load_copy=address, iteration=3), told.append)
    assert (load / "global_step3/index.json").exists()


def test_a_newer_checkpoint_here_is_kept(address, tmp_path):
    upload(address, tmp_path / "elsewhere", 3)
    mine = checkpoint(tmp_path / "here", 6)
    (tmp_path / "here/latest").write_text("global_step6")
    told: list[str] = []
    config = config_of(tmp_path / "here", tmp_path / "here", load_copy=address)
    fetch_checkpoint(config, told.append, for_training=True)
    assert f"{mine} is used" in told[0]
    assert not (tmp_path / "here/global_step3").exists()


def test_only_a_run_that_saves_there_may_begin_without_a_checkpoint(address, tmp_path):
    here = tmp_path / "here"
    own = config_of(here, here, load_copy=address, save_copy=address)
    fetch_checkpoint(own, print, for_training=True)
    with pytest.raises(CheckpointError, match=f"load: no checkpoint at {address}"):
        fetch_checkpoint(config_of(tmp_path / "other", here, load_copy=address), print)


def test_a_wrong_address_ends_the_run_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    wrong = f"file://{tmp_path}/file/run"
    with pytest.raises(CheckpointError, match=r"save_copy: file://.*cannot be written"):
        fetch_checkpoint(config_of(tmp_path, save_copy=wrong), print, for_training=True)


def test_a_run_that_begins_anew_does_not_replace_copies_of_another(address, tmp_path):
    def open_at(step: int, **saving: Any) -> BackgroundCopies | None:
        config = config_of(tmp_path / "save", save_copy=address, **saving)
        return open_copies(config, step=step, warn=print, tell=print)

    assert open_at(0) is not None
    upload(address, tmp_path / "elsewhere", 12)
    with pytest.raises(CheckpointError, match=r"contains checkpoints up to iteration 12"):
        open_at(0)
    assert open_at(7) is not None
    assert open_at(0, load=tmp_path / "save", iteration=0) is not None  # on purpose
    assert open_copies(config_of(tmp_path), step=0, warn=print, tell=print) is None
