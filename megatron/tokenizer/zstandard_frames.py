"""Decompresses zstandard block by block, so that no input makes more than a block at once.

`zstandard.stream_reader` ends without an error in the middle of a frame, and its `decompressobj`
returns all that a piece of input contains: 100 KB can contain 1 GB. The frame format (RFC 8878)
tells the length of each block, at most 128 KiB of text; the library gets one block at a time.
"""

import io
from typing import IO, Any

from megatron.tokenizer.errors import DocumentError

_MAGIC = 0xFD2FB528
_SKIPPABLE_MAGIC = 0x184D2A50
"""Magic number of a frame without text; the last four bits are free."""

_RLE_BLOCK = 1
_SKIP_BYTES = 1 << 20
_LARGEST_WINDOW_LOG = 31  # of the library


class ZstandardFile(io.RawIOBase):
    """Decompresses zstandard frames one after another; a file that ends inside one is damaged."""

    def __init__(self, source: IO[bytes], name: str, *, memory_limit_bytes: int):
        """Begins before the first frame.

        Args:
            source: The compressed bytes.
            name: Name of the file, for messages.
            memory_limit_bytes: Maximum size of a frame's window, the text that it refers back to
                and that must be in memory; a larger one is refused.

        Raises:
            DocumentError: The package zstandard is not installed.
        """
        try:
            import zstandard
        except ImportError as error:
            raise DocumentError(
                f"{name}: reading .zst needs the package zstandard; pip install zstandard"
            ) from error
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=1 << _LARGEST_WINDOW_LOG)
        self._error = zstandard.ZstdError
        self._source = source
        self._name = name
        self._memory_limit_bytes = memory_limit_bytes
        self._frame: Any = None
        self._has_checksum = False
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        """Returns True, because the buffer around it asks."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer with decompressed bytes; returns their number, 0 at the end."""
        while not self._ready:
            if self._frame is None and not self._begin_frame():
                return 0
            if self._frame is not None:
                self._ready = memoryview(self._decompress(self._next_block()))
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _begin_frame(self) -> bool:
        """Reads the next frame's header; False at the end of the file."""
        magic = self._source.read(4)
        if not magic:
            return False
        number = int.from_bytes(magic, "little")
        if len(magic) == 4 and number & ~0xF == _SKIPPABLE_MAGIC:
            self._skip(int.from_bytes(self._read(4), "little"))
            return True
        if number != _MAGIC:
            raise EOFError("damaged zstandard data: no frame begins where one should")
        header = self._read(1)
        descriptor = header[0]
        is_single_segment = bool(descriptor & 0x20)
        size_bytes = (int(is_single_segment), 2, 4, 8)[descriptor >> 6]
        dictionary_bytes = (0, 1, 2, 4)[descriptor & 3]
        header += self._read(int(not is_single_segment) + dictionary_bytes + size_bytes)
        if is_single_segment:  # the text itself is the window
            size = int.from_bytes(header[1 + dictionary_bytes :], "little")
            self._check_window(size + (256 if size_bytes == 2 else 0))
        else:
            base = 1 << (10 + (header[1] >> 3))
            self._check_window(base + base // 8 * (header[1] & 7))
        self._has_checksum = bool(descriptor & 4)
        self._frame = self._decompressor.decompressobj()
        self._ready = memoryview(self._decompress(magic + header))
        return True

    def _check_window(self, window_bytes: int) -> None:
        if window_bytes > self._memory_limit_bytes:
            raise too_much_memory(self._name, window_bytes, self._memory_limit_bytes)

    def _next_block(self) -> bytes:
        header = self._read(3)
        number = int.from_bytes(header, "little")
        is_last, kind, size = number & 1, (number >> 1) & 3, number >> 3
        block = header + self._read(1 if kind == _RLE_BLOCK else size)
        return block + self._read(4) if is_last and self._has_checksum else block

    def _decompress(self, compressed: bytes) -> bytes:
        try:
            content = self._frame.decompress(compressed)
        except self._error as error:
            raise EOFError(f"damaged zstandard data: {error}") from error
        if self._frame.eof:
            self._frame = None
        return content

    def _read(self, size: int) -> bytes:
        content = self._source.read(size)
        if len(content) < size:
            raise EOFError("the file ends inside a zstandard frame")
        return content

    def _skip(self, size: int) -> None:
        while size > 0:
            size -= len(self._read(min(size, _SKIP_BYTES)))


def too_much_memory(name: str, needed_bytes: int | None, limit_bytes: int) -> DocumentError:
    """The error for data that was compressed with more memory than reading may take."""
    needed = "too much memory" if needed_bytes is None else f"{needed_bytes / 1e6:.4g} MB"
    return DocumentError(
        f"{name}: decompression needs {needed}; at most {limit_bytes / 1e6:.4g} MB are allowed; "
        "raise --max-record-mb, or compress it again with a smaller window"
    )
