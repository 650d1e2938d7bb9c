"""Cuts streams of bytes into records, none of which may be larger than a limit."""

import codecs
import csv
from collections.abc import Iterator, Sequence
from typing import IO, Any

from megatron.tokenizer.decompression import BUFFER_BYTES
from odm.wording import counted

TEXT_BLOCK_BYTES = 1 << 22
DEFAULT_LIMIT_BYTES = 64_000_000
"""About twenty long novels; a larger record is more likely a file without line ends."""

_LARGEST_CSV_FIELD = (1 << 31) - 1

_LONGEST_LINE_END = len(b"\r\n")
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

Row = tuple[int, dict[str, Any] | ValueError]
"""The number of a row's first line, and the row or a problem."""


def too_large(limit_bytes: int) -> ValueError:
    """The problem of a record above the limit."""
    return ValueError(
        f"a record of more than {limit_bytes / 1e6:.4g} MB, raise --max-record-mb to read it"
    )


def decode(content: bytes, *, offset: int = 0) -> str:
    """Decodes UTF-8, without a byte order mark.

    Args:
        content: Whole characters.
        offset: Bytes of the same text before ``content``.

    Raises:
        ValueError: Names the first bad byte, or the encoding that the text has instead.
    """
    try:
        return content.decode("utf-8" if offset else "utf-8-sig")
    except UnicodeDecodeError as error:
        if not offset and content.startswith(_UTF16_MARKS):
            raise ValueError("a file in UTF-16, convert it to UTF-8") from error
        raise ValueError(
            f"invalid UTF-8 at byte {offset + error.start}, 0x{content[error.start]:02x}"
        ) from error


def limited_lines(stream: IO[bytes], limit_bytes: int) -> Iterator[bytes | None]:
    """Yields the lines of a stream; None for one of more bytes than the limit, without its end."""
    while line := stream.readline(limit_bytes + _LONGEST_LINE_END):
        if _size_without_end(line) <= limit_bytes:
            yield line
        else:
            is_whole = line.endswith(b"\n")
            del line
            yield None
            if not is_whole:
                _skip_line(stream)


def whole(stream: IO[bytes], limit_bytes: int) -> bytes | None:
    """Returns what a stream holds; None for more bytes than the limit."""
    blocks = []
    while limit_bytes >= 0 and (block := stream.read(min(TEXT_BLOCK_BYTES, limit_bytes + 1))):
        blocks.append(block)
        limit_bytes -= len(block)
    return b"".join(blocks) if limit_bytes >= 0 else None


def text_blocks(stream: IO[bytes]) -> Iterator[bytes]:
    """Yields a text in blocks of at most 4 MiB, cut at blank lines or else at line ends."""
    rest = b""
    while True:
        block = rest + stream.read(TEXT_BLOCK_BYTES - len(rest))
        if len(block) < TEXT_BLOCK_BYTES:
            if block:
                yield block
            return
        half = len(block) // 2
        marks = (b"\n\n", b"\n\r\n", b"\n")
        places = ((block.rfind(mark, half), len(mark)) for mark in marks)
        cut = next((place + length for place, length in places if place >= 0), len(block) - 3)
        while block[cut : cut + 1] and block[cut] & 0xC0 == 0x80 and cut > len(block) - 8:
            cut -= 1  # not inside a character
        yield block[:cut]
        rest = block[cut:]


def csv_rows(
    stream: IO[bytes], keys: Sequence[str], *, delimiter: str, limit_bytes: int
) -> Iterator[Row]:
    """Yields the rows of a table whose first row names the columns (RFC 4180).

    A row that cannot be used is yielded as a problem. The next row begins where the number of
    quotes is even. A table without the columns is one problem.
    """
    csv.field_size_limit(_LARGEST_CSV_FIELD)  # `lines` holds the limit, over all fields of a row
    lines = _RowLines(stream, limit_bytes)
    header: list[str] | None = None
    while True:
        first_line = lines.begin_row()
        fields = _fields(lines, delimiter)
        if isinstance(fields, ValueError):
            yield first_line, fields
            if header is None:
                return
            lines.skip_row()
            continue
        if fields is None:
            return
        if header is None:
            header = fields
            if problem := _header_problem(header, keys):
                yield first_line, problem
                return
        elif len(fields) == len(header):
            yield first_line, dict(zip(header, fields, strict=True))
        elif fields:  # else an empty line
            told = f"{counted(len(fields), 'field')}, the header has {len(header)}"
            yield first_line, ValueError(told)


def _fields(lines: "_RowLines", delimiter: str) -> list[str] | ValueError | None:
    """The fields of the next row, or why it has none; None at the end."""
    try:
        return next(csv.reader(lines, delimiter=delimiter, strict=True), None)
    except csv.Error as error:
        return ValueError(f"malformed row, {error}")
    except ValueError as error:
        return error


def _header_problem(header: Sequence[str], keys: Sequence[str]) -> ValueError | None:
    for key in keys:
        if key not in header:
            return no_column(key, header)
        if header.count(key) > 1:
            return ValueError(f"{header.count(key)} columns {key!r}, give each its own name")
    return None


def no_column(key: str, names: Sequence[str]) -> ValueError:
    """The problem of a table without the column that is asked for."""
    return ValueError(f"no column {key!r} (there is: {listed(names)}), choose with --text-key")


def listed(names: Sequence[str]) -> str:
    """Names for a message, shortened because they come from the file."""
    shown = [repr(name if len(name) <= 40 else f"{name[:40]}...") for name in names[:20]]
    return ", ".join(shown) + (", ..." if len(names) > 20 else "") or "nothing"


class _RowLines:
    """Lines for `csv.reader`; those of one row are not more bytes than the limit together."""

    def __init__(self, stream: IO[bytes], limit_bytes: int):
        self._stream = stream
        self._limit_bytes = limit_bytes
        self._row_bytes = 0
        self._quotes = 0
        self._number = 0
        self._offset = 0

    def begin_row(self) -> int:
        """Starts counting a row; returns the number of its first line."""
        self._row_bytes = self._quotes = 0
        return self._number + 1

    def __iter__(self) -> "_RowLines":
        return self

    def __next__(self) -> str:
        room = self._limit_bytes - self._row_bytes
        line = self._take(max(1, room + _LONGEST_LINE_END))
        if not line:
            raise StopIteration
        self._row_bytes += len(line)
        if _size_without_end(line) > room:
            if not line.endswith(b"\n"):
                self._rest_of_line()
            raise too_large(self._limit_bytes)
        return decode(line, offset=self._offset - len(line))

    def skip_row(self) -> None:
        """Skips to the end of a row that was given up: where its quotes are closed."""
        while self._quotes % 2 and (line := self._take(BUFFER_BYTES)):
            if not line.endswith(b"\n"):
                self._rest_of_line()

    def _rest_of_line(self) -> None:
        while (line := self._take(BUFFER_BYTES)) and not line.endswith(b"\n"):
            pass

    def _take(self, most_bytes: int) -> bytes:
        line = self._stream.readline(most_bytes)
        self._quotes += line.count(b'"')
        self._offset += len(line)
        self._number += line.endswith(b"\n")
        return line


def _size_without_end(line: bytes) -> int:
    return len(line.removesuffix(b"\n").removesuffix(b"\r"))


def _skip_line(stream: IO[bytes]) -> None:
    while (rest := stream.readline(BUFFER_BYTES)) and not rest.endswith(b"\n"):
        pass
