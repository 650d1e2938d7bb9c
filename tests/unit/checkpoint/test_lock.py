"""One run at a time in a save folder."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from megatron.checkpoint import lock
from megatron.checkpoint.lock import LOCK_NAME, lock_save_folder
from megatron.errors import CheckpointError

ROOT = Path(__file__).resolve().parents[3]


def hold(folder: Path) -> subprocess.Popen[str]:
    """A process that holds the lock until it is killed."""
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from megatron.checkpoint.lock import lock_save_folder\n"
        "lock = lock_save_folder(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_makes_the_folder_and_leaves_nothing_but_the_lock_file(tmp_path):
    lock_save_folder(tmp_path / "new/run").close()
    assert [path.name for path in (tmp_path / "new/run").iterdir()] == [LOCK_NAME]


def test_a_second_run_is_refused_and_told_of_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "DYING_SECONDS", 0.2)
    process = hold(tmp_path)
    try:
        with pytest.raises(CheckpointError, match=f"in use by process {process.pid} on "):
            lock_save_folder(tmp_path)
    finally:
        process.kill()
        process.communicate()


def test_the_lock_of_a_killed_process_is_gone(tmp_path):
    process = hold(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with lock_save_folder(tmp_path) as file:
        file.seek(0)
        assert file.read().startswith(f"process {os.getpid()} on ")


def test_a_closed_lock_can_be_taken_again(tmp_path):
    lock_save_folder(tmp_path).close()
    lock_save_folder(tmp_path).close()


def test_two_folders_do_not_disturb_each_other(tmp_path):
    with lock_save_folder(tmp_path / "a"), lock_save_folder(tmp_path / "b"):
        pass


def test_a_path_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"^save: .*file/run cannot be written \(Not a dir"):
        lock_save_folder(tmp_path / "file/run")


def test_a_folder_that_may_only_be_read_is_refused():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)
        is_root = os.geteuid() == 0
        if is_root:  # root ignores permissions
            os.seteuid(65534)
        try:
            with pytest.raises(CheckpointError, match=r"cannot be written \(Permission denied\)"):
                lock_save_folder(folder)
            with pytest.raises(CheckpointError, match=r"cannot be written \(Permission denied\)"):
                lock_save_folder(folder / "run")
        finally:
            if is_root:
                os.seteuid(0)
            folder.chmod(0o755)
        assert list(folder.iterdir()) == []


def test_a_file_system_without_locks_is_used_without_one_aloud(tmp_path, monkeypatch, caplog):
    def flock(file, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock_save_folder(tmp_path):
        assert "without locks (Function not implemented)" in caplog.text


def test_a_run_waits_for_the_last_moments_of_a_killed_one(tmp_path):
    process = hold(tmp_path)
    timer = threading.Timer(0.3, process.kill)
    timer.start()
    try:
        with lock_save_folder(tmp_path) as file:
            file.seek(0)
            assert file.read().startswith(f"process {os.getpid()} on ")
    finally:
        timer.join()
        process.communicate()
