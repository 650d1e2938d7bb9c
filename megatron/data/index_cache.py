"""Files in which a process keeps what it found out about a large index, for later processes.

Every rank of every run needs the same facts about its data: that the index is sound, a digest of
it, and the documents in random order. Finding them reads the index from end to end, so it is done
once. A record names what it is about by size and times of the files, so that changed files make it
void; it contains a checksum of itself, so that damage is noticed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron.files import atomic_writer, take_lock
from odm.json_data import Check, SchemaError, fields, integer, read_json

__all__ = ["RECORDED_DOCUMENTS", "SMALL_INDEX", "IndexCache", "file_facts", "record_name"]

logger = logging.getLogger(__name__)

SMALL_INDEX = 1 << 14
"""Documents below which nothing is kept: scanning and ordering them takes less than a millisecond,
as opening a file does; runs may have thousands of such data sets."""

RECORDED_DOCUMENTS = 1 << 18
"""Documents from which on files are written durably (4 MB), so that a record may vouch for them.
Smaller files are checked by whoever opens them, in at most 3 ms."""

MAX_RECORD_BYTES = 1 << 16
_RECORD_VERSION = 1


class IndexCache:
    """Finds a folder for such files, and lets one process at a time make them.

    Args:
        folder: The only folder to use; None for the folder of the data or, if that cannot be
            written, the user's cache folder.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self._folder = folder
        self._without_room: dict[str, list[Path]] = {}

    def folders(self, prefix: str | Path) -> list[Path]:
        """The folders in which files about a data set may be, the preferred one first."""
        if self._folder is not None:
            return [Path(self._folder)]
        home = os.path.expanduser("~")
        user_cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(home, ".cache")
        return [Path(prefix).parent, Path(user_cache) / "odm-neox"]

    @contextlib.contextmanager
    def one_process_at_a_time(self, prefix: str | Path) -> Iterator[None]:
        """Lets other processes wait, and then use what this one has written.

        The lock is a file of its own: network file systems lock only files that are open for
        writing, and the data may be read-only. It ends with the process. Without a writable folder,
        or on a file system without locks, every process does the work.
        """
        with contextlib.ExitStack() as held:
            for folder in self.folders(prefix):
                with contextlib.suppress(OSError):
                    folder.mkdir(parents=True, exist_ok=True)
                    held.enter_context(_locked(folder / f".{_data_set_name(prefix)}.lock"))
                    break
            yield

    def find(self, prefix: str | Path, name: str, check: Check) -> dict[str, Any] | None:
        """Returns a record, or None if there is none or it is damaged, which is reported.

        Args:
            prefix: The data set.
            name: Name of the record, which no other record has.
            check: Check of its content.
        """
        paths = [folder / name for folder in self.folders(prefix)]
        return next((found for path in paths if (found := _read(path, check)) is not None), None)

    def keep(self, prefix: str | Path, name: str, content: dict[str, Any]) -> None:
        """Writes a record into the first folder that can be written, or notes that none can."""
        record = {"version": _RECORD_VERSION, **content}
        text = json.dumps({**record, "crc32": _checksum(record)})
        for folder in self.folders(prefix):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with atomic_writer(folder / name, durable=False) as stream:
                    stream.write(text.encode())
                return
            except OSError as error:
                logger.debug("%s: cannot be written (%s)", folder / name, error)
        self.note_without_room(prefix)

    def note_without_room(self, prefix: str | Path) -> None:
        """Notes that no folder can keep files about a data set."""
        self._without_room[str(prefix)] = self.folders(prefix)

    def report(self) -> None:
        """Logs one line if there was no folder for some data sets."""
        if not self._without_room:
            return
        prefix, folders = next(iter(self._without_room.items()))
        logger.warning(
            "%s: files about the index cannot be kept in any folder (tried %s; %d data sets); it "
            "is scanned and ordered at every start. Set data_cache_dir to a writable folder",
            prefix,
            ", ".join(map(str, folders)),
            len(self._without_room),
        )


def file_facts(stat: os.stat_result) -> list[int] | None:
    """What changes with a file: size, and times of content and inode in nanoseconds.

    None on file systems that do not tell times; nothing can be recorded about a file there.
    """
    facts = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    return facts if stat.st_mtime_ns > 0 and stat.st_ctime_ns > 0 else None


def record_name(prefix: str | Path, *about: Any) -> str:
    """Name of the record of a data set about these facts."""
    digest = hashlib.sha256(repr((_RECORD_VERSION, _absolute(prefix), about)).encode()).hexdigest()
    return f"{Path(prefix).name}_index_{digest[:24]}.json"


def _absolute(prefix: str | Path) -> str:
    return os.path.abspath(prefix)


def _data_set_name(prefix: str | Path) -> str:
    """A file name that other data sets in the same cache folder do not have."""
    digest = hashlib.sha256(_absolute(prefix).encode("utf-8", "surrogateescape")).hexdigest()
    return f"{Path(prefix).name}_{digest[:16]}"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Locks a file that exists as long as somebody has it locked.

    Raises:
        OSError: If the file cannot be made. A file system without locks is no error.
    """
    while True:
        file = open(path, "a+b")
        try:
            take_lock(file, waits=True)
            is_current = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
        except FileNotFoundError:
            is_current = False  # removed by the process that was waited for
        except OSError:
            is_current = True  # no locks here: every process goes on
        if is_current:
            break
        file.close()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # while it is locked, so that nobody's new file is removed
        file.close()


def _read(path: Path, check: Check) -> dict[str, Any] | None:
    if not path.exists():
        return None
    of_record = fields({"version": integer(), "crc32": integer()})

    def checked(value: Any, where: str) -> None:
        of_record(value, where)
        if value["version"] != _RECORD_VERSION:
            raise SchemaError(f"version {value['version']}, this version reads {_RECORD_VERSION}")
        if value["crc32"] != _checksum({k: v for k, v in value.items() if k != "crc32"}):
            raise SchemaError("wrong checksum")
        check(value, where)

    try:
        return read_json(path, checked, what="record of an index", max_bytes=MAX_RECORD_BYTES)
    except SchemaError as error:
        logger.warning("%s; the index is scanned again", error)
        return None


def _checksum(record: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())
