"""One run at a time in a save folder."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import IO

from megatron.errors import CheckpointError

try:
    import fcntl
except ImportError:  # Windows: no advisory locks, two runs are not detected there
    fcntl = None  # type: ignore[assignment]

__all__ = ["lock_save_folder"]

LOCK_NAME = ".lock"


def lock_save_folder(save: Path) -> IO[str]:
    """Creates ``save`` and locks it until the returned file is closed or the process dies.

    The kernel drops the lock with the process, so that a killed run never blocks the next one.

    Raises:
        CheckpointError: If the folder cannot be written, or another run holds it.
    """
    path = save / LOCK_NAME
    try:
        save.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(
            f"save: {save} cannot be written ({error.strerror}); choose a writable folder"
        ) from error
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            owner = file.read().strip() or "another process"
            file.close()
            raise CheckpointError(
                f"save: {save} is in use by {owner}; stop that run or choose another folder"
            ) from error
    file.seek(0)
    file.truncate()
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file
