"""Writing files so that a crash leaves either the old content or the new one, never half."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows has no advisory locks
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "atomic_writer",
    "crc32_of_file",
    "flush_to_disk",
    "fsync_folder",
    "is_same_path",
    "replace_folder",
    "retired_name",
    "take_lock",
    "temporary_path",
    "write_json_atomic",
    "write_text_atomic",
]

_BLOCK_BYTES = 1 << 22
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # what some network file systems say


@contextlib.contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Opens a stream whose content replaces ``path`` only if the block ends without an error.

    Args:
        path: The file to make or to replace; its folder must be there.

    Yields:
        A binary stream on a temporary file beside ``path``; it is removed if the block raises.

    Raises:
        OSError: If the folder cannot be written or the disk is full.
    """
    temporary = temporary_path(path)
    try:
        with temporary.open("xb") as stream:
            yield stream
            flush_to_disk(stream)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):  # the folder may be what is wrong
            temporary.unlink()
        raise
    fsync_folder(path.parent)


def write_text_atomic(path: Path, text: str) -> None:
    """Replaces ``path`` by ``text`` in UTF-8, with the line ends that ``text`` has."""
    with atomic_writer(path) as stream:
        stream.write(text.encode("utf-8"))


def write_json_atomic(path: Path, data: Any) -> None:
    """`write_text_atomic` of JSON whose floats round-trip exactly; NaN is refused."""
    write_text_atomic(path, json.dumps(data, allow_nan=False, indent=1) + "\n")


def temporary_path(path: Path) -> Path:
    """Returns an unused hidden name beside ``path``, so that a rename stays on one file system."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def replace_folder(temporary: Path, final: Path) -> None:
    """Gives a finished folder its name, durably, and removes the folder that had it before.

    A crash leaves one of the two under that name, or the old one as `retired_name`.

    Raises:
        OSError: If it cannot be renamed; the old folder is back then.
    """
    fsync_folder(temporary)
    retired = retired_name(final)
    if final.exists():
        shutil.rmtree(retired, ignore_errors=True)  # of a crash
        os.replace(final, retired)
    try:
        os.replace(temporary, final)
    except OSError:
        if retired.exists():
            os.replace(retired, final)
        raise
    fsync_folder(final.parent)
    shutil.rmtree(retired, ignore_errors=True)


def retired_name(folder: Path) -> Path:
    """Name of a folder on its way out."""
    return folder.with_name(f"{folder.name}.old.tmp")


def take_lock(file: IO[Any], *, waits: bool = False) -> None:
    """Locks an open file until it is closed or its process dies: a killed one blocks nobody.

    Args:
        file: Opened for reading or writing; its content does not matter.
        waits: Whether to wait for another process that holds it.

    Raises:
        BlockingIOError: If another process holds it.
        OSError: If the system or the file system has no locks: Windows, some network folders.
    """
    if fcntl is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    fcntl.flock(file, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_same_path(one: str | Path, other: str | Path) -> bool:
    """Compares what two paths mean: one may be relative, or go through a link."""
    return os.path.realpath(one) == os.path.realpath(other)


def flush_to_disk(stream: BinaryIO) -> None:
    """Empties Python's buffer and the system's: after it, a power cut loses nothing of the file."""
    stream.flush()
    os.fsync(stream.fileno())


def fsync_folder(folder: Path) -> None:
    """Makes renames inside ``folder`` durable, where the system can do that to a folder."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def describe_error(error: Exception) -> str:
    """One line for the user; of an error of the system the path and the reason, without numbers."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    place = error.filename2 or error.filename or "input or output"  # the second is where to rename
    return f"{place}: {error.strerror}; check the path, the permissions and the free space"


def crc32_of_file(path: Path) -> int:
    """CRC-32 of a file's bytes; finds torn writes and flipped bits, not tampering."""
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            checksum = zlib.crc32(block, checksum)
    return checksum
