"""Removes files that killed runs left beside a dataset; files of live runs are locked.

The tokens of a dataset are written to ``.<name>.<process>-<random>.tmp``. A run that is killed
cannot remove that file, which may hold gigabytes, and no later run would find it.
"""

import contextlib
import glob
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from megatron.files import take_lock


def remove_left_overs(path: Path, *, tell: Callable[[str], None]) -> None:
    """Removes the temporary files of ``path`` that no living process holds.

    Args:
        path: The final name of the file.
        tell: Receives one message per file that was removed.
    """
    for found in _temporaries_of(path):
        # held, another user's, or on a file system without locks
        with contextlib.suppress(OSError), found.open("r+b") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            # one that is empty may be about to be locked: see `locked_temporaries`
            if size_bytes > 0:
                take_lock(file)
                found.unlink()
                tell(f"removed {found}, {size_bytes / 1e6:.1f} MB that a killed run left there")


@contextlib.contextmanager
def locked_temporaries(path: Path) -> Iterator[None]:
    """Keeps `remove_left_overs` from this process's temporary files of ``path``.

    Enter this context before the first byte is written; the lock ends with the process.
    """
    with contextlib.ExitStack() as stack:
        for found in _temporaries_of(path, process=str(os.getpid())):
            file = stack.enter_context(found.open("r+b"))
            with contextlib.suppress(OSError):  # without locks no run removes it either
                take_lock(file)
        yield


def _temporaries_of(path: Path, *, process: str = r"\d+") -> list[Path]:
    """The names that `megatron.files.temporary_path` gives."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.{process}-[0-9a-f]+\.tmp")
    candidates = path.parent.glob(f".{glob.escape(path.name)}.*.tmp")
    return sorted(found for found in candidates if pattern.fullmatch(found.name))
