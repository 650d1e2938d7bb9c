"""Checks the first and last bytes of a data set's two files: present, complete, and a pair.

Standard library only, so that a configuration is checked against its data quickly; `read_index` in
`megatron.data.index_format` looks at every item.
"""

from __future__ import annotations

import os
import stat
import struct
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from megatron.data.errors import DataError
from odm.wording import counted

__all__ = [
    "HEADER",
    "LEGACY_MAGIC",
    "MAGIC",
    "VERSION",
    "IndexHeader",
    "data_file_path",
    "header_of",
    "index_file_path",
    "leading_tokens",
    "open_file",
    "read_header",
    "stored_tokens",
]

MAGIC = b"MMIDIDX\x00\x00"
LEGACY_MAGIC = b"TNTIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")

TOKEN_BYTES: dict[int, tuple[int, ...]] = {
    **{1: (1,), 2: (1,), 3: (2,), 4: (4,), 5: (8,), 8: (2,)},
    **{6: (4, 8), 7: (8, 4)},  # Megatron-LM gives these codes the other way round
}
"""Bytes per token by dtype code; if there are two, the length of the ``.bin`` decides."""

_SIZE, _POINTER = struct.Struct("<i"), struct.Struct("<q")


@dataclass(frozen=True)
class IndexHeader:
    """The header of an ``.idx`` file whose length is right."""

    code: int
    """Code of the type of a token."""
    num_items: int
    num_doc_indices: int


def index_file_path(prefix: str | Path) -> str:
    """Returns the path of the index of a data set."""
    return f"{prefix}.idx"


def data_file_path(prefix: str | Path) -> str:
    """Returns the path of the tokens of a data set."""
    return f"{prefix}.bin"


def read_header(prefix: str | Path) -> IndexHeader:
    """Reads the header of the index of ``prefix``.

    Raises:
        DataError: If one of the two files is missing, or the index is foreign or truncated.
    """
    index_path = Path(index_file_path(prefix))
    with open_file(index_path) as stream, open_file(Path(data_file_path(prefix))):
        return header_of(index_path, stream)


def open_file(path: Path) -> BinaryIO:
    """Opens one of the two files of a data set, without a buffer.

    Raises:
        DataError: If it is missing, no ordinary file, or cannot be read.
    """
    try:
        # a pipe must not be waited for
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return open(descriptor, "rb", buffering=0)
        os.close(descriptor)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    raise DataError(f"{path}: no such file; a data set is the pair <prefix>.bin, <prefix>.idx")


def header_of(path: Path, stream: BinaryIO) -> IndexHeader:
    """Reads the header of an open index, and checks the length of the file.

    Raises:
        DataError: If the index is foreign or truncated, or cannot be read.
    """
    try:
        header = _parse_header(path, stream.read(HEADER.size))
        found = os.fstat(stream.fileno()).st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    expected = HEADER.size + 12 * header.num_items + 8 * header.num_doc_indices
    if found != expected:
        raise DataError(
            f"{path}: must have {expected} bytes for {counted(header.num_items, 'item')} and "
            f"{counted(header.num_doc_indices, 'document index', 'document indices')}, found "
            f"{found}; the file is truncated or damaged, make it again"
        )
    return header


def stored_tokens(prefix: str | Path) -> int:
    """Returns the number of tokens of a data set, from the header and the last item.

    Raises:
        DataError: As ``read_header``, and if the ``.bin`` does not end where the last item does.
    """
    header = read_header(prefix)
    data_path = Path(data_file_path(prefix))
    try:
        found = os.path.getsize(data_path)
        with open(data_path, "rb"):
            pass  # may be read
        with open(index_file_path(prefix), "rb") as stream:
            size, pointer = _last_item(stream, header.num_items)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error
    widths = TOKEN_BYTES[header.code]
    for width in widths:
        if pointer + size * width == found:
            return found // width
    expected = pointer + size * widths[0]
    state = "truncated" if found < expected else "longer than its index says"
    raise DataError(
        f"{data_path}: must have {expected} bytes for {counted(header.num_items, 'item')}, found "
        f"{found}; the file is {state}, copy or make the data set again"
    )


def leading_tokens(prefix: str | Path, num_items: int) -> int:
    """Returns the number of tokens in the first items of a data set.

    Raises:
        DataError: As ``read_header``.
    """
    read_header(prefix)
    sizes = array("i")
    path = index_file_path(prefix)
    try:
        with open(path, "rb") as stream:
            stream.seek(HEADER.size)
            sizes.frombytes(stream.read(_SIZE.size * num_items))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return sum(sizes)


def _last_item(stream: BinaryIO, num_items: int) -> tuple[int, int]:
    """Tokens of the last item and its first byte in the ``.bin``."""
    if num_items == 0:
        return 0, 0
    stream.seek(HEADER.size + _SIZE.size * (num_items - 1))
    (size,) = _SIZE.unpack(stream.read(_SIZE.size))
    stream.seek(HEADER.size + _SIZE.size * num_items + _POINTER.size * (num_items - 1))
    (pointer,) = _POINTER.unpack(stream.read(_POINTER.size))
    return size, pointer


def _parse_header(path: Path, head: bytes) -> IndexHeader:
    if head.startswith(LEGACY_MAGIC):
        raise DataError(
            f"{path}: written in the legacy TNTIDX format (data_impl lazy or cached), which is not "
            "supported; tokenize the text again with --dataset-impl mmap"
        )
    if not head.startswith(MAGIC):
        raise DataError(
            f"{path}: begins with {head[:9]!r} instead of {MAGIC!r}; not an index of tokenized data"
        )
    if len(head) < HEADER.size:
        raise DataError(
            f"{path}: the header needs {HEADER.size} bytes, found {len(head)}; "
            "the file is truncated, make it again"
        )
    _, version, code, num_items, num_doc_indices = HEADER.unpack(head)
    if version != VERSION:
        raise DataError(f"{path}: version {version}, only version {VERSION} is supported")
    if code not in TOKEN_BYTES:
        raise DataError(f"{path}: unknown dtype code {code}; known are {sorted(TOKEN_BYTES)}")
    return IndexHeader(code, num_items, num_doc_indices)
