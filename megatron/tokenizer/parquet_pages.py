"""Finds how large the pages of a .parquet file are, before anything of them is decompressed.

pyarrow decompresses a page as a whole and does not tell its size beforehand; asking it about a
column of a damaged file can end the process. So the headers are read here: Thrift structs in the
compact protocol, at the places that the Parquet format defines.
"""

import io
from collections.abc import Iterator, Sequence
from typing import IO, Any

_DEEPEST = 12
_LONGEST_NAME_BYTES = 4096
_HEADER_BUFFER_BYTES = 4096
_FOOTER_END_BYTES = 8
_LARGEST_FOOTER_BYTES = 1 << 28

_FALSE, _TRUE, _BYTE, _INT16, _INT32, _INT64, _DOUBLE = 2, 1, 3, 4, 5, 6, 7
_BINARY, _LIST, _SET, _MAP, _STRUCT = 8, 9, 10, 11, 12

# ids of fields in parquet.thrift
_ROW_GROUPS = 4
_COLUMNS = 1
_META_DATA = 3
_PATH, _NUM_VALUES, _COMPRESSED_BYTES, _DATA_PAGE, _DICTIONARY_PAGE = 3, 5, 7, 9, 11
_PAGE_UNCOMPRESSED, _PAGE_COMPRESSED = 2, 3

Chunk = tuple[int, int]
"""Where the pages of a column begin in the file, and their bytes."""


def largest_pages(source: IO[bytes], keys: Sequence[str]) -> list[int]:
    """Bytes of the largest page of some columns, decompressed, in each row group.

    Args:
        source: The file; its place changes.
        keys: Names of columns; those inside them count too.

    Raises:
        ValueError, EOFError, OSError: A header is damaged.
    """
    buffered = io.BufferedReader(source, _HEADER_BUFFER_BYTES)  # type: ignore[type-var]
    try:
        groups = list(_row_groups(buffered, keys))
        return [
            max((_largest_page(buffered, chunk) for chunk in chunks), default=0)
            for chunks in groups
        ]
    finally:
        buffered.detach()


def _row_groups(file: IO[bytes], keys: Sequence[str]) -> Iterator[list[Chunk]]:
    end = file.seek(-_FOOTER_END_BYTES, io.SEEK_END)
    size = int.from_bytes(file.read(4), "little")
    if not 0 < size <= min(end, _LARGEST_FOOTER_BYTES):
        raise ValueError(f"a footer of {size} bytes")
    file.seek(end - size)
    footer = _Compact(io.BytesIO(file.read(size)))
    for identifier, kind in footer.fields():
        if identifier == _ROW_GROUPS and kind == _LIST:
            for group_kind in footer.elements():  # one at a time: there may be very many
                yield _chunks(footer.value(group_kind), keys)
        else:
            footer.value(kind)


def _chunks(group: Any, keys: Sequence[str]) -> list[Chunk]:
    chunks = []
    for column in group[_COLUMNS]:
        data = column[_META_DATA]
        path = b".".join(data[_PATH]).decode()
        if any(path == key or path.startswith(f"{key}.") for key in keys):
            start, dictionary = data[_DATA_PAGE], data.get(_DICTIONARY_PAGE, 0)
            start = dictionary if 0 < dictionary < start else start
            if data[_NUM_VALUES]:  # without pages their place has no meaning
                chunks.append((start, data[_COMPRESSED_BYTES]))
    return chunks


def _largest_page(file: IO[bytes], chunk: Chunk) -> int:
    start, num_bytes = chunk
    largest = 0
    place = file.seek(start)
    while place < start + num_bytes:
        header = _Compact(file).struct()
        largest = max(largest, header[_PAGE_UNCOMPRESSED])
        compressed = header[_PAGE_COMPRESSED]
        if compressed < 0:
            raise ValueError("a page of negative size")
        place = file.seek(compressed, io.SEEK_CUR)
    return largest


class _Compact:
    """Reads values of Thrift's compact protocol; long binary values are passed over."""

    def __init__(self, stream: IO[bytes]):
        self._stream = stream

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Returns the fields of a struct by their ids."""
        return {identifier: self.value(kind, depth) for identifier, kind in self.fields()}

    def fields(self) -> Iterator[tuple[int, int]]:
        """Yields id and kind of each field; its value is read before the next one is asked for."""
        identifier = 0
        while head := self._byte():
            identifier = identifier + (head >> 4) if head >> 4 else self._integer()
            yield identifier, head & 0xF

    def elements(self) -> Iterator[int]:
        """Yields the kind of each element of a list; its value is read before the next one."""
        head = self._byte()
        size = head >> 4 if head >> 4 < 15 else self._varint()
        for _ in range(size):
            yield _BYTE if head & 0xF in (_TRUE, _FALSE) else head & 0xF

    def value(self, kind: int, depth: int = 0) -> Any:
        """Reads a value of a kind."""
        if depth > _DEEPEST:
            raise ValueError("a header nested too deeply")
        if kind in (_TRUE, _FALSE):
            return kind == _TRUE
        if kind == _BYTE:
            return self._byte()
        if kind in (_INT16, _INT32, _INT64):
            return self._integer()
        if kind == _DOUBLE:
            return self._exactly(8)
        if kind == _BINARY:
            size = self._varint()
            if size <= _LONGEST_NAME_BYTES:
                return self._exactly(size)
            self._stream.seek(size, io.SEEK_CUR)
            return b""
        if kind in (_LIST, _SET):
            return [self.value(element, depth + 1) for element in self.elements()]
        if kind == _MAP:
            size = self._varint()
            kinds = self._byte() if size else 0
            for _ in range(size):
                self.value(kinds >> 4, depth + 1)
                self.value(kinds & 0xF, depth + 1)
            return None
        if kind == _STRUCT:
            return self.struct(depth + 1)
        raise ValueError(f"a header with a value of kind {kind}")

    def _integer(self) -> int:
        number = self._varint()
        return (number >> 1) ^ -(number & 1)

    def _varint(self) -> int:
        number = shift = 0
        while (byte := self._byte()) & 0x80:
            number |= (byte & 0x7F) << shift
            shift += 7
            if shift > 63:
                raise ValueError("a number that does not end")
        return number | byte << shift

    def _byte(self) -> int:
        return self._exactly(1)[0]

    def _exactly(self, size: int) -> bytes:
        content = self._stream.read(size)
        if len(content) < size:
            raise EOFError("the file ends inside a header")
        return content
