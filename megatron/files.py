"""Writes files so that a crash leaves either the old content or the new one, never a part of it."""

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
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # from some network file systems


@contextlib.contextmanager
def atomic_writer(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Opens a stream; its content replaces ``path`` only if the block ends without an error.

    Args:
        path: The file to create or replace; its folder must exist.
        durable: False does not wait for the disk: after a power cut the file may be missing or
            damaged. For files whose reader finds out and makes them again; a wait takes
            milliseconds, and a cluster's file system makes it longer.

    Yields:
        A binary stream on a temporary file beside ``path``; it is removed if the block raises.

    Raises:
        OSError: If the folder cannot be written, the disk is full, or ``path`` is something else
            than a file: as root, a rename would replace a device such as /dev/null.
    """
    if path.is_dir():
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "Is no ordinary file", str(path))
    temporary = temporary_path(path)
    try:
        with temporary.open("xb") as stream:
            yield stream
            if durable:
                flush_to_disk(stream)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):  # the folder itself may be the problem
            temporary.unlink()
        raise
    if durable:
        fsync_folder(path.parent)


def write_text_atomic(path: Path, text: str) -> None:
    """Replaces the content of ``path`` by ``text`` in UTF-8; line ends are not changed."""
    with atomic_writer(path) as stream:
        stream.write(text.encode("utf-8"))


def write_json_atomic(path: Path, data: Any) -> None:
    """`write_text_atomic` for JSON; floats are written exactly, NaN is an error."""
    write_text_atomic(path, json.dumps(data, allow_nan=False, indent=1) + "\n")


def temporary_path(path: Path) -> Path:
    """Returns an unused hidden name beside ``path``, so that a rename stays on one file system."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def replace_folder(temporary: Path, final: Path) -> None:
    """Gives a finished folder its final name, durably, and removes the folder that had this name.

    After a crash, one of the two has that name, or the old one has its `retired_name`.

    Raises:
        OSError: If the folder cannot be renamed; the old folder then has its name again.
    """
    fsync_folder(temporary)
    retired = retired_name(final)
    if final.exists():
        shutil.rmtree(retired, ignore_errors=True)  # left by a crash
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
    """Name of a folder that is about to be removed."""
    return folder.with_name(f"{folder.name}.old.tmp")


def take_lock(file: IO[Any], *, waits: bool = False) -> None:
    """Locks an open file until it is closed or its process dies: a killed process blocks no other.

    Args:
        file: A file opened for reading or writing; its content does not matter.
        waits: Whether to wait for another process that has locked the file.

    Raises:
        BlockingIOError: If another process has locked the file.
        OSError: If the system or the file system does not support locks: Windows, some network
            folders.
    """
    if fcntl is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    fcntl.flock(file, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is what Git LFS leaves in the place of one that was not downloaded.

    False if it cannot be read, which whoever opens it next reports.
    """
    begin = b"version https://git-lfs.github.com/spec/"
    try:
        with path.open("rb") as stream:
            return stream.read(len(begin)) == begin
    except OSError:
        return False


def is_same_path(one: str | Path, other: str | Path) -> bool:
    """Whether two paths mean the same place; one may be relative, or contain a link."""
    return os.path.realpath(one) == os.path.realpath(other)


def flush_to_disk(stream: BinaryIO) -> None:
    """Flushes Python's and the system's buffers; then a power cut loses nothing of the file."""
    stream.flush()
    os.fsync(stream.fileno())


def fsync_folder(folder: Path) -> None:
    """Makes renames inside ``folder`` durable, if the system supports this for folders."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows cannot open folders
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def describe_error(error: Exception) -> str:
    """One line for the user; for a system error the path and the reason, without error numbers."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    place = error.filename2 or error.filename or "input or output"  # the second: a rename's target
    return f"{place}: {error.strerror}; check the path, the permissions and the free space"


def crc32_of_file(path: Path) -> int:
    """CRC-32 of a file's bytes; finds torn writes and flipped bits, not tampering."""
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            checksum = zlib.crc32(block, checksum)
    return checksum
