"""A folder of checkpoints that fsspec reaches: object stores, other machines, memory.

A checkpoint is complete there when its ``index.json`` exists, which is written last; the file
``latest`` is written after that. So an interrupted copy is never taken for a checkpoint.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from megatron.checkpoint.foreign import STEP_NAME
from megatron.errors import UserError, one_line
from megatron.files import replace_folder, write_text_atomic
from megatron.neox_arguments.secrets import REDACTED, is_secret_key

__all__ = ["RemoteError", "RemoteFolder", "file_system_problem", "without_secrets"]

_REQUIREMENTS = "pip install -r requirements/requirements-remote.txt"
_INDEX, _LATEST = "index.json", "latest"
_LONGEST_ERROR = 300
_WITH_FOLDERS = frozenset(
    ("file", "local", "memory", "sftp", "ssh", "ftp", "smb", "hdfs", "arrow_hdfs", "webhdfs")
)
"""Protocols whose folders must be made. Object stores have none, and to make one there could make a
bucket of a name that was misspelled."""
_SHORTEST_SECRET = 6


class RemoteError(UserError):
    """An address cannot be reached, read or written."""


def file_system_problem(address: str) -> str | None:
    """What is missing on this machine for an address; None if nothing is. Connects to nothing."""
    try:
        import fsspec
    except ImportError:
        return f"{address} needs the package fsspec; {_REQUIREMENTS}"
    protocol = address.partition("://")[0].lower()
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:  # the package of this file system
        return f"{address}: {one_line(error)}"
    except ValueError:
        known = ", ".join(sorted({"s3", "gs", "abfs", "file", "sftp", "hf", "memory"}))
        return f"{address}: fsspec knows no file system {protocol}; it knows {known} and others"
    return None


def without_secrets(error: BaseException) -> str:
    """The text of another library's error on one line, without values of secret variables."""
    text = one_line(f"{type(error).__name__}: {error}".rstrip(": "))
    secrets = [value for name, value in os.environ.items() if is_secret_key(name)]
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, REDACTED)
    text = re.sub(r"://[^/\s@]*:[^/\s@]*@", f"://{REDACTED}@", text)
    return text if len(text) <= _LONGEST_ERROR else f"{text[:_LONGEST_ERROR]}..."


class RemoteFolder:
    """The folder at an address; only one process writes to it.

    Args:
        key: The key of the configuration that has the address, for messages.
        address: A valid address, see `megatron.neox_arguments.addresses`.

    Raises:
        RemoteError: If the file system is not installed or cannot be set up.
    """

    def __init__(self, key: str, address: str) -> None:
        protocol, _, path = address.partition("://")
        protocol = protocol.lower()  # fsspec knows only small letters
        self.key, self.address = key, f"{protocol}://{path.rstrip('/')}"
        if problem := file_system_problem(self.address):
            raise RemoteError(f"{key}: {problem}")
        import fsspec

        try:
            files, root = fsspec.core.url_to_fs(self.address)
        except Exception as error:  # every file system has errors of its own
            self._fail(error, "cannot be opened")
        self._files: Any = files
        self._root = root.rstrip("/")
        self._has_folders = protocol in _WITH_FOLDERS

    def check_writable(self) -> None:
        """Writes a small file and removes it.

        Raises:
            RemoteError: If the address is wrong, or nothing can be written there.
        """
        path = f"{self._root}/write_test"
        try:
            self._make_folder(self._root)
            self._files.pipe_file(path, b"")
        except Exception as error:
            self._fail(error, "cannot be written")
        try:
            self._files.rm_file(path)
        except Exception:  # some may write and not delete; then the empty file stays
            return

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending.

        Raises:
            RemoteError: If the folder cannot be listed. One that does not exist has no steps.
        """
        names = (PurePosixPath(path).name for path in self._list(self._root, detail=False))
        steps = (int(match[1]) for name in names if (match := STEP_NAME.fullmatch(name)))
        return sorted(step for step in steps if self._sizes(step).get(_INDEX))

    def latest(self) -> int | None:
        """The step that ``latest`` names if it is complete, else the last complete one."""
        try:
            named = self._files.cat_file(f"{self._root}/{_LATEST}")[:256]
        except FileNotFoundError:
            named = b""
        except Exception as error:
            self._fail(error, "cannot be read")
        match = STEP_NAME.fullmatch(named.decode("utf-8", "replace").strip())
        if match and self._sizes(int(match[1])).get(_INDEX):
            return int(match[1])
        return max(self.steps(), default=None)

    def upload(self, step: int, folder: Path, *, done: set[str]) -> None:
        """Copies a checkpoint; its index last, and then ``latest``.

        Args:
            step: Its iteration.
            folder: The complete checkpoint on this machine.
            done: Names of the files that an earlier attempt has copied; updated.

        Raises:
            RemoteError: If it could not be copied completely.
        """
        target = self._path_of(step)
        names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
        sizes = {name: (folder / name).stat().st_size for name in names}
        try:
            if not done:
                self._remove(step, (_INDEX,))  # of an earlier checkpoint of this step
            for name in [*(n for n in names if n != _INDEX), _INDEX]:
                if name == _INDEX:
                    self._finish(step, sizes, done)
                if name not in done:
                    path = f"{target}/{PurePosixPath(*Path(name).parts)}"
                    self._make_folder(path.rpartition("/")[0])
                    self._files.put_file(str(folder / name), path)
                    done.add(name)
            self._files.pipe_file(f"{self._root}/{_LATEST}", folder.name.encode())
        except RemoteError:
            raise
        except Exception as error:
            self._fail(error, "cannot be written")

    def download(self, step: int, save: Path) -> Path:
        """Copies a checkpoint to ``<save>/global_step<N>`` and writes ``<save>/latest``.

        Returns:
            The folder of the checkpoint, whose checksums are not yet checked.

        Raises:
            RemoteError: If it is not complete or cannot be read; nothing is left then.
        """
        sizes = self._sizes(step)
        if not sizes.get(_INDEX):
            found = ", ".join(map(str, self.steps())) or "none"
            raise RemoteError(
                f"{self.key}: {self.address}: no complete checkpoint of iteration {step}; found: "
                f"{found}"
            )
        final = save / f"global_step{step}"
        temporary = final.with_name(final.name + ".tmp")
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            for name in sizes:
                path = temporary / name
                path.parent.mkdir(parents=True, exist_ok=True)
                self._files.get_file(f"{self._path_of(step)}/{name}", str(path))
            replace_folder(temporary, final)
            write_text_atomic(save / _LATEST, final.name)
        except Exception as error:
            shutil.rmtree(temporary, ignore_errors=True)
            self._fail(error, f"cannot be copied to {save}")
        return final

    def _finish(self, step: int, sizes: dict[str, int], done: set[str]) -> None:
        """Checks the lengths of the copies, and removes what belongs to an earlier checkpoint."""
        found = self._sizes(step)
        self._remove(step, [name for name in found if name not in sizes])
        for name, size in sizes.items():
            if name != _INDEX and found.get(name) != size:
                done.discard(name)
                raise RemoteError(
                    f"{self.key}: {self._path_of(step)}/{name}: has {found.get(name)} bytes after "
                    f"it was copied, and {size} here"
                )

    def _make_folder(self, path: str) -> None:
        if self._has_folders:
            self._files.makedirs(path, exist_ok=True)

    def _remove(self, step: int, names: Iterable[str]) -> None:
        for name in names:
            path = f"{self._path_of(step)}/{name}"
            if self._files.exists(path):
                self._files.rm_file(path)

    def _sizes(self, step: int) -> dict[str, int]:
        """Bytes of each file of a checkpoint, by its name inside the folder."""
        folder = self._path_of(step)
        listed = self._list(folder, detail=True, deep=True)
        sizes = {
            path[len(folder) :].lstrip("/"): int(info["size"]) for path, info in listed.items()
        }
        # some stores list the folder itself
        return {name: size for name, size in sizes.items() if not {"", ".."} & {*name.split("/")}}

    def _list(self, folder: str, *, detail: bool, deep: bool = False) -> Any:
        try:
            self._files.invalidate_cache()
            if deep:
                return self._files.find(folder, detail=detail)
            return self._files.ls(folder, detail=detail)
        except FileNotFoundError:
            return {} if deep else []
        except Exception as error:
            self._fail(error, "cannot be listed")

    def _path_of(self, step: int) -> str:
        return f"{self._root}/global_step{step}"

    def _fail(self, error: Exception, what: str) -> NoReturn:
        reason = without_secrets(error)
        raise RemoteError(f"{self.key}: {self.address}: {what} ({reason})") from None
