"""Locks a save folder, so that only one run at a time uses it."""

from __future__ import annotations

import logging
import os
import socket
import time
from pathlib import Path
from typing import IO

from megatron.errors import CheckpointError
from megatron.files import take_lock

__all__ = ["lock_save_folder"]

LOCK_NAME = ".lock"
DYING_SECONDS = 5.0
"""How long to wait for a lock: ranks of a killed launcher need a moment to die, and free memory."""
_RETRY_SECONDS = 0.05

logger = logging.getLogger(__name__)


def lock_save_folder(save: Path) -> IO[str]:
    """Creates ``save`` and locks it until the returned file is closed or the process dies.

    The kernel releases the lock when the process ends, so a killed run never blocks the next one:
    if its ranks are still ending, this function waits up to `DYING_SECONDS` for them.
    If the file system does not support locks, a warning reports it and no lock is taken.

    Raises:
        CheckpointError: If the folder cannot be written, or another run has locked it.
    """
    try:
        save.mkdir(parents=True, exist_ok=True)
        file = open(save / LOCK_NAME, "a+", encoding="utf-8")
    except OSError as error:
        raise _unwritable(save, error) from error
    try:
        _lock(file, save)
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    except OSError as error:
        file.close()
        raise _unwritable(save, error) from error
    except CheckpointError:
        file.close()
        raise
    return file


def _lock(file: IO[str], save: Path) -> None:
    deadline = time.monotonic() + DYING_SECONDS
    try:
        while not _try_lock(file, is_last=time.monotonic() >= deadline):
            time.sleep(_RETRY_SECONDS)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or "another process"
        raise CheckpointError(
            f"save: {save} is in use by {owner}; stop that run or choose another folder"
        ) from None
    except OSError as error:
        logger.warning(
            "save: %s is on a file system without locks (%s); do not start two runs in it",
            save,
            error.strerror,
        )


def _try_lock(file: IO[str], *, is_last: bool) -> bool:
    try:
        take_lock(file)
    except BlockingIOError:
        if is_last:
            raise
        return False
    return True


def _unwritable(save: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"save: {save} cannot be written ({error.strerror}); choose a writable folder"
    )
