"""What processes hold in /dev/shm, and what is left of it when they are gone."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

_FOLDER = Path("/dev/shm")


def segments_of(pids: Iterable[int]) -> set[str]:
    """Names of the files there that these processes have mapped or that carry their process id.

    Ask while they live: other programs, tests among them, come and go in the same folder.
    """
    if not _FOLDER.is_dir():
        return set()
    segments: set[str] = set()
    for pid in pids:
        with contextlib.suppress(OSError):  # it may have ended
            maps = Path(f"/proc/{pid}/maps").read_text()
            segments |= set(re.findall(rf" {_FOLDER}/([^/\n]+?)(?: \(deleted\))?$", maps, re.M))
        own = re.compile(rf"(?<!\d){pid}(?!\d)")
        segments |= set(filter(own.search, os.listdir(_FOLDER)))
    return segments


def left_of(segments: Iterable[str]) -> list[str]:
    """Which of them are still there."""
    return sorted(name for name in segments if (_FOLDER / name).exists())
