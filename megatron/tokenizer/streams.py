"""Opens text files, compressed or inside archives, as streams of bytes.

A file is recognised by its name (`megatron.tokenizer.file_kinds`). Nothing is unpacked to disk or
held in memory as a whole. So links inside archives are counted, not followed, and a name inside an
archive that is absolute or has ``..`` cannot do harm.
"""

import io
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from megatron.tokenizer.decompression import BUFFER_BYTES, decompressed
from megatron.tokenizer.errors import DocumentError
from megatron.tokenizer.file_kinds import (
    extension,
    is_hidden_member,
    is_one_document,
    is_readable,
    is_readable_member,
    printable,
    split_suffixes,
)
from megatron.tokenizer.left_out import HIDDEN, LINKS, NAMELESS, WITHOUT_FIELDS, LeftOutFiles

DAMAGE = (EOFError, OSError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile)
"""What the standard library raises for truncated or foreign compressed data."""

ARCHIVE_DAMAGE = (*DAMAGE, ValueError, LookupError, ArithmeticError, RuntimeError, struct.error)
"""What it also raises for nonsense in the headers of archives."""

LONGEST_EXTENDED_HEADER_BYTES = 1 << 20
"""Tar keeps long names in members of their own, which `tarfile` reads as a whole."""

MEMBER_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""`zipfile` decompresses other kinds a megabyte of input at a time, however much comes out."""


@dataclass(frozen=True)
class TextStream:
    """One file, or one member of an archive: its name for messages, its kind and its bytes."""

    name: str
    content: str
    """The suffix that defines the kind, as `split_suffixes` gives it."""
    stream: IO[bytes]


@dataclass(frozen=True)
class Opening:
    """How files are opened.

    Attributes:
        on_read: Called with the number of bytes read from disk, for progress.
        left_out: Counts the members of archives that are not read.
        limit_bytes: Memory that decompression may use; at least 128 MiB are allowed.
        has_fields: Several fields are wanted: members of prose and code have none.
    """

    on_read: Callable[[int], None]
    left_out: LeftOutFiles
    limit_bytes: int
    has_fields: bool = False


class CountingFile(io.RawIOBase):
    """A file open for reading that reports to `on_read` how many bytes were read from disk."""

    def __init__(self, path: Path, on_read: Callable[[int], None]):
        self._file = open(path, "rb", buffering=0)
        self._on_read = on_read

    def readable(self) -> bool:
        """Returns True, because the buffer around it asks."""
        return True

    def seekable(self) -> bool:
        """Returns whether the file has positions to seek to, unlike a pipe."""
        return self._file.seekable()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to a position in the file."""
        return self._file.seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer from the file; returns the number of bytes, 0 at the end."""
        count = self._file.readinto(buffer) or 0
        self._on_read(count)
        return count

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        super().close()


def open_streams(path: Path, opening: Opening) -> Iterator[TextStream]:
    """Yields the text streams of a file: itself, or each readable member of an archive in order.

    Raises:
        DocumentError: The file cannot be opened, or its archive structure is damaged.
    """
    content, compression = split_suffixes(path.name)
    try:
        raw = CountingFile(path, opening.on_read)
    except OSError as error:
        raise DocumentError(f"{path}: cannot be opened ({error.strerror}); check it") from error
    with raw:
        if content == ".zip":
            yield from _zip_streams(path, opening)
            return
        buffered = io.BufferedReader(raw, BUFFER_BYTES)
        try:
            source = decompressed(buffered, compression, str(path), limit_bytes=opening.limit_bytes)
        except DAMAGE as error:
            raise damaged(str(path), error) from error
        if content == ".tar":
            yield from _tar_streams(source, path, opening)
        else:
            yield TextStream(printable(str(path)), content, source)


def damaged(name: str, error: BaseException) -> DocumentError:
    """The error for a file whose container cannot be read to its end."""
    reason = printable((str(error) or type(error).__name__).splitlines()[0])
    return DocumentError(f"{printable(name)}: damaged or truncated file ({reason}); fetch it again")


def _is_wanted(name: str, path: Path, opening: Opening) -> bool:
    """Decides by its name whether a member of an archive is read, and counts it if not."""
    full_name = f"{path}!{name}"
    if "\0" in name or not name:
        opening.left_out.count(NAMELESS, full_name)
    elif is_hidden_member(name):
        opening.left_out.count(HIDDEN, full_name)
    elif not is_readable_member(name):
        is_container = is_readable(name)  # beside an archive it would be read
        kind = f"{extension(name)} in archives" if is_container else extension(name)
        opening.left_out.count_kind(full_name, kind=kind)
    elif opening.has_fields and is_one_document(name):
        opening.left_out.count(WITHOUT_FIELDS, full_name)
    else:
        return True
    return False


def _member_stream(name: str, path: Path, source: IO[bytes], opening: Opening) -> TextStream:
    content, compression = split_suffixes(name)
    full_name = f"{path}!{printable(name)}"
    stream = decompressed(source, compression, full_name, limit_bytes=opening.limit_bytes)
    return TextStream(full_name, content, stream)


class _StrictArchive(tarfile.TarFile):
    """An archive that knows whether its end mark was read."""

    is_ended = False


class _StrictMember(tarfile.TarInfo):
    """A header that must be whole.

    `tarfile` takes a garbled or cut header, or an archive that ends between two members, for the
    end of the archive. The documents after it would be lost without a message.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_StrictMember":
        """Parses a header; one that announces a huge name is refused before the name is read."""
        member = super().frombuf(buf, encoding, errors)
        if member.type in _EXTENDED_HEADERS and member.size > LONGEST_EXTENDED_HEADER_BYTES:
            raise tarfile.ReadError(f"an extended header of {member.size} bytes")
        return member

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


_EXTENDED_HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


def _tar_streams(source: IO[bytes], path: Path, opening: Opening) -> Iterator[TextStream]:
    try:
        # ignore_zeros: archives one after the other are read as one
        with _StrictArchive.open(
            fileobj=source, mode="r|", tarinfo=_StrictMember, ignore_zeros=True
        ) as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # else it holds every header that it has read
                if member.isdir() or not _is_wanted(member.name, path, opening):
                    continue
                content = archive.extractfile(member) if member.isfile() else None
                if content is not None:
                    yield _member_stream(member.name, path, content, opening)
                elif member.islnk() or member.issym():
                    opening.left_out.count(LINKS, f"{path}!{member.name}")
                else:
                    kind = "devices or pipes in archives"
                    opening.left_out.count_kind(f"{path}!{member.name}", kind=kind)
    except DocumentError:
        raise
    except ARCHIVE_DAMAGE as error:
        raise damaged(str(path), error) from error


def _zip_streams(path: Path, opening: Opening) -> Iterator[TextStream]:
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                yield from _zip_member(archive, member, path=path, opening=opening)
                opening.on_read(member.compress_size)
    except DocumentError:
        raise
    except ARCHIVE_DAMAGE as error:
        raise damaged(str(path), error) from error


def _zip_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, *, path: Path, opening: Opening
) -> Iterator[TextStream]:
    name = member.orig_filename  # `filename` ends at a NUL
    if name.endswith("/") or not _is_wanted(name, path, opening):
        return
    if stat.S_ISLNK(member.external_attr >> 16):
        opening.left_out.count(LINKS, f"{path}!{name}")
        return
    if member.compress_type not in MEMBER_COMPRESSIONS:
        raise DocumentError(
            f"{path}!{printable(name)}: compressed by zip's method {member.compress_type}, which "
            "is not supported; pack it again with zip's usual method (deflate)"
        )
    with archive.open(member) as content:
        stream = io.BufferedReader(content, BUFFER_BYTES)  # type: ignore[type-var]
        yield _member_stream(name, path, stream, opening)
