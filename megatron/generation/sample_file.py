"""JSON lines, written as soon as samples are done."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from megatron.files import flush_to_disk, fsync_folder
from megatron.neox_arguments import ConfigError

__all__ = ["check_output", "open_sample_file", "part_path"]

Write = Callable[[dict[str, Any]], None]


def part_path(path: Path) -> Path:
    """Where the lines are until all of them are there."""
    return path.with_name(path.name + ".part")


def check_output(path: Path | None) -> None:
    """Refuses an output that cannot be written, before anything slow starts.

    Raises:
        ConfigError: No folder, no permission, or a folder of that name.
    """
    if path is None:
        return
    folder = path.parent
    if not folder.is_dir():
        problem = f"there is no folder {folder}; make it or name another file"
    elif path.is_dir():
        problem = f"{path} is a folder; name a file"
    elif path.exists() and not path.is_file():  # a rename would replace the device
        problem = f"{path} is no ordinary file; name one"
    elif not os.access(folder, os.W_OK):
        problem = f"the folder {folder} is not writable; name another file"
    else:
        return
    raise ConfigError(f"sample_output_file: {problem}")


@contextlib.contextmanager
def open_sample_file(path: Path | None) -> Iterator[Write]:
    """Yields a function that writes a record as one line, at once.

    Lines go to `part_path`, which gets the name ``path`` when the block ends without an error. A
    run that fails leaves its complete lines there, and an older ``path`` as it was.

    Args:
        path: The file; None is standard output.

    Raises:
        ConfigError: If the file cannot be made.
    """
    if path is None:
        yield lambda record: _write_to_console(_line(record))
        return
    check_output(path)
    part = part_path(path)
    try:
        stream = part.open("wb")
    except OSError as error:
        raise ConfigError(
            f"sample_output_file: {part} cannot be written ({error.strerror}); name another file"
        ) from error

    def write(record: dict[str, Any]) -> None:
        stream.write(_line(record).encode("utf-8"))
        stream.flush()

    with stream:
        yield write
        flush_to_disk(stream)
    os.replace(part, path)
    fsync_folder(path.parent)


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _write_to_console(line: str) -> None:
    sys.stdout.write(line)
    sys.stdout.flush()
