"""Opens text files, compressed or inside archives, as streams of bytes.

A file is recognised by its name: ``.jsonl``, ``.ndjson``, ``.json`` or ``.txt``, perhaps followed
by ``.gz``, ``.zst``, ``.bz2`` or ``.xz``; or an archive of such files (``.zip``, ``.tar``,
``.tar.gz``, ``.tgz``, ``.tar.zst`` ...). Nothing is unpacked to disk or held in memory as a whole,
so links inside archives are not followed but named.
"""

import io
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from megatron.tokenizer.decompression import BUFFER_BYTES, decompressed
from megatron.tokenizer.errors import DocumentError

LINE_SUFFIXES = (".jsonl", ".ndjson", ".json")
TEXT_SUFFIXES = (".txt",)
ARCHIVE_SUFFIXES = (".tar", ".zip")
COMPRESSION_SUFFIXES = (".gz", ".zst", ".bz2", ".xz")
READABLE = (
    ".jsonl, .json or .txt, plain or with .gz, .zst, .bz2, .xz, or .zip/.tar archives of these"
)
NO_TEXT = "not a kind of text file that is read"

DAMAGE = (EOFError, OSError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile)
"""What the standard library raises for truncated or foreign compressed data."""


@dataclass(frozen=True)
class TextStream:
    """One file, or one member of an archive: its name for messages, its kind and its bytes."""

    name: str
    is_lines: bool
    stream: IO[bytes]


def split_suffixes(name: str) -> tuple[str, str]:
    """Splits a file name into its content suffix and its compression suffix, each may be empty."""
    lowered = name.lower()
    if lowered.endswith(".tgz"):
        return ".tar", ".gz"
    compression = next((end for end in COMPRESSION_SUFFIXES if lowered.endswith(end)), "")
    stem = lowered[: len(lowered) - len(compression)]
    known = LINE_SUFFIXES + TEXT_SUFFIXES + ARCHIVE_SUFFIXES
    return next((end for end in known if stem.endswith(end)), ""), compression


def is_readable(name: str) -> bool:
    """Says whether a file of this name can be opened by `open_streams`."""
    return split_suffixes(name)[0] != ""


def expand_inputs(paths: list[str], *, report: Callable[[str], None]) -> list[Path]:
    """Lists the files behind paths; a folder stands for its readable files, sorted, recursively.

    Args:
        paths: Files and folders.
        report: Receives one line about each folder with files of other kinds.

    Raises:
        DocumentError: A path is empty, does not exist, has an unknown suffix or cannot be listed,
            or a folder holds nothing.
    """
    files: list[Path] = []
    for given in paths:
        if not given:
            raise DocumentError(
                "an input has no name (one comma too many?); give . for the current folder"
            )
        path = Path(given)
        if path.is_dir():
            files.extend(_readablefiles_below(path, report))
        elif not path.exists():
            raise DocumentError(f"{path}: no such file or folder; check the path")
        elif not is_readable(path.name):
            raise DocumentError(f"{path}: unknown kind of file; give {READABLE}")
        else:
            files.append(path)
    if not files:
        raise DocumentError(f"no input given; give {READABLE}")
    return files


def _readablefiles_below(folder: Path, report: Callable[[str], None]) -> list[Path]:
    """The text files of a folder; those of other kinds are reported in one line."""
    files = files_below(folder)
    found = [path for path in files if is_readable(path.name) and not _describes_tokens(path.name)]
    if not found:
        raise DocumentError(f"{folder}: the folder holds no readable file; give {READABLE}")
    others = [path for path in files if not is_readable(path.name)]
    if others:
        report(
            f"{folder}: {len(others)} files left out, not a kind of text file that is read "
            f"(the first: {others[0]})"
        )
    return found


def _describes_tokens(name: str) -> bool:
    """Tells the sidecar that our own tokenizing writes beside its output."""
    return name.endswith("_document.meta.json")


def files_below(folder: Path) -> list[Path]:
    """Lists all files below a folder, sorted.

    `Path.rglob` leaves out what it may not list and what lies behind a link; here the first is an
    error, and a folder is read once however many links lead to it.
    """
    files: list[Path] = []
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=_refuse_folder):
        true_path = os.path.realpath(root)
        if true_path in seen:  # else a link to a folder above would never end
            folders.clear()
            continue
        seen.add(true_path)
        files += [Path(root, name) for name in names]
        folders.sort()
    for path in files:
        if is_readable(path.name) and not path.exists():
            raise DocumentError(f"{path}: a link to a file that is not there; mend or remove it")
    return sorted(path for path in files if path.is_file())


def _refuse_folder(error: OSError) -> None:
    raise DocumentError(f"{error.filename}: cannot be listed ({error.strerror}); check it")


class CountingFile(io.RawIOBase):
    """A file open for reading that tells `on_read` how many bytes left the disk."""

    def __init__(self, path: Path, on_read: Callable[[int], None]):
        self._file = open(path, "rb", buffering=0)
        self._on_read = on_read

    def readable(self) -> bool:
        """Says yes, as the buffering around it asks."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer from the file; returns the number of bytes, 0 at the end."""
        count = self._file.readinto(buffer) or 0
        self._on_read(count)
        return count

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        super().close()


def open_streams(
    path: Path, *, on_read: Callable[[int], None], on_ignored: Callable[[str, str], None]
) -> Iterator[TextStream]:
    """Yields the text streams of a file: itself, or each readable member of an archive in order.

    Args:
        path: A file of a readable name.
        on_read: Called with the number of bytes read from disk, for progress.
        on_ignored: Called with the name of each archive member that is left out, and the reason.

    Raises:
        DocumentError: The file cannot be opened, or its archive structure is damaged.
    """
    content, compression = split_suffixes(path.name)
    try:
        raw = CountingFile(path, on_read)
    except OSError as error:
        raise DocumentError(f"{path}: cannot be opened ({error.strerror}); check it") from error
    with raw:
        if content == ".zip":
            yield from _zip_streams(path, on_read, on_ignored)
            return
        source = decompressed(io.BufferedReader(raw, BUFFER_BYTES), compression, str(path))
        if content == ".tar":
            yield from _tar_streams(source, path, on_ignored)
        else:
            yield TextStream(str(path), content in LINE_SUFFIXES, source)


def damaged(name: str, error: BaseException) -> DocumentError:
    """The error for a file whose container cannot be read to its end."""
    reason = str(error) or type(error).__name__
    return DocumentError(f"{name}: damaged or truncated file ({reason}); fetch it again")


def _member_stream(
    name: str, source: IO[bytes], on_ignored: Callable[[str, str], None]
) -> Iterator[TextStream]:
    content, compression = split_suffixes(name)
    if content in LINE_SUFFIXES + TEXT_SUFFIXES:
        yield TextStream(name, content in LINE_SUFFIXES, decompressed(source, compression, name))
    else:
        on_ignored(name, NO_TEXT)


def _ignore_link(name: str, target: str, on_ignored: Callable[[str, str], None]) -> None:
    """Tells of a link: an archive is read as a stream, in which there is no way back to a target.

    Links of other kinds of name are passed over: what they lead to has a name of its own.
    """
    if split_suffixes(name)[0] in LINE_SUFFIXES + TEXT_SUFFIXES:
        remedy = "pack files, not links (tar --dereference --hard-dereference)"
        on_ignored(name, f"a link to {target}, which is not followed; {remedy}")


class _StrictArchive(tarfile.TarFile):
    """An archive that knows whether its end mark was read."""

    is_ended = False


class _StrictMember(tarfile.TarInfo):
    """A header that must be whole.

    `tarfile` takes a garbled or cut header, and an archive that ends between two members, for the
    end of the archive: the documents behind it would be lost without a word.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_StrictMember":
        """Reads the next header of an archive."""
        assert isinstance(archive, _StrictArchive)
        try:
            member = super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # typeshed lacks it
            archive.is_ended = True
            raise
        except tarfile.HeaderError as error:
            is_at_end = isinstance(error, tarfile.EmptyHeaderError)  # type: ignore[attr-defined]
            if is_at_end and archive.is_ended:
                raise
            raise tarfile.ReadError(f"{error} at byte {archive.offset}") from error
        archive.is_ended = False  # another archive may follow the first
        return member


def _tar_streams(
    source: IO[bytes], path: Path, on_ignored: Callable[[str, str], None]
) -> Iterator[TextStream]:
    try:
        # ignore_zeros: archives one behind the other are read as one
        with _StrictArchive.open(
            fileobj=source, mode="r|", tarinfo=_StrictMember, ignore_zeros=True
        ) as archive:
            for member in archive:
                name = f"{path}!{member.name}"
                if member.islnk() or member.issym():
                    _ignore_link(name, member.linkname, on_ignored)
                    continue
                content = archive.extractfile(member) if member.isfile() else None
                if content is not None:
                    yield from _member_stream(name, content, on_ignored)
    except DAMAGE as error:
        raise damaged(str(path), error) from error


def _zip_streams(
    path: Path, on_read: Callable[[int], None], on_ignored: Callable[[str, str], None]
) -> Iterator[TextStream]:
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.is_dir():
                    continue
                name = f"{path}!{member.filename}"
                with archive.open(member) as content:
                    if stat.S_ISLNK(member.external_attr >> 16):
                        target = content.read().decode(errors="replace")
                        _ignore_link(name, target, on_ignored)
                    else:
                        yield from _member_stream(name, content, on_ignored)
                on_read(member.compress_size)
    except (*DAMAGE, NotImplementedError, RuntimeError) as error:
        raise damaged(str(path), error) from error
