"""Hands arguments to ranks in a private file: a command line is limited in size, and public."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["arguments_folder", "write_arguments"]

_PREFIX = "odm-neox-"


@contextmanager
def arguments_folder() -> Iterator[Path]:
    """Makes a folder that only this user may read; removes it again, and those of the dead."""
    _remove_left_folders()
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_arguments(folder: Path, name: str, arguments: Mapping[str, Any]) -> Path:
    """Writes ``arguments`` as JSON into ``folder`` and returns the file's path."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps(arguments), encoding="utf-8")
    return path


def _remove_left_folders() -> None:
    """Removes folders of launchers that were killed before they could."""
    if os.name != "posix":
        return
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        pid = folder.name[len(_PREFIX) :].split("-")[0]
        try:
            if pid.isdecimal() and folder.stat().st_uid == os.getuid() and not _is_alive(int(pid)):
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
