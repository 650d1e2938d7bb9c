"""Hands arguments to ranks in a private file: a command line is limited in size, and public.

Other users also use the folder of temporary files, and if it is shared, so do other machines and
containers. The name of a folder tells whose it is; folders of others are left alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import stat
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ["arguments_folder", "write_arguments"]


@contextmanager
def arguments_folder() -> Iterator[Path]:
    """Makes a folder that only this user can read; removes it later, and those of dead runs."""
    _remove_left_folders()
    folder = Path(tempfile.mkdtemp(prefix=f"{_prefix()}{os.getpid()}-"))  # mode 0700
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_arguments(folder: Path, name: str, arguments: Mapping[str, Any]) -> Path:
    """Writes ``arguments`` as JSON into ``folder`` and returns the file's path."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps(arguments), encoding="utf-8")
    return path


def _prefix() -> str:
    """Prefix of the names of this user's folders, where process numbers mean the same."""
    host = re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname())[:64]
    owner = os.getuid() if hasattr(os, "getuid") else "user"
    return f"odm-neox-{owner}-{host}-{_process_space()}-"


def _process_space() -> str:
    """Short name of the scope of process numbers: a boot of a machine, and a container in it."""
    parts = []
    with suppress(OSError):  # not Linux
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        parts.append(os.readlink("/proc/self/ns/pid"))
    return format(zlib.crc32("".join(parts).encode()), "08x")


def _remove_left_folders() -> None:
    """Removes folders of launchers that were killed before they could."""
    if os.name != "posix":
        return
    pattern = re.compile(re.escape(_prefix()) + r"([1-9][0-9]{0,9})-\w+")
    with suppress(OSError):  # a folder that may not be listed, or what another process removed
        for entry in os.scandir(tempfile.gettempdir()):
            match = pattern.fullmatch(entry.name)
            if match and _is_own_folder(entry) and not _is_alive(int(match[1])):
                shutil.rmtree(entry.path, ignore_errors=True)


def _is_own_folder(entry: os.DirEntry[str]) -> bool:
    with suppress(OSError):
        facts = entry.stat(follow_symlinks=False)
        return stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid()
    return False


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
