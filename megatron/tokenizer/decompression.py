"""Reads compressed streams to their very end, or says that they are damaged."""

import bz2
import gzip
import io
import lzma
from collections.abc import Callable
from typing import IO, Any

from megatron.tokenizer.errors import DocumentError

BUFFER_BYTES = 1 << 20

XZ_PADDING_BYTES = 4
"""Between and behind the streams of an .xz file may lie zeros, a multiple of so many."""


class ZstandardFile(io.RawIOBase):
    """Decompresses zstandard frames one after another.

    `zstandard.stream_reader` ends quietly in the middle of a frame; a truncated corpus would then
    lose documents without a word, so the end of each frame is checked here.
    """

    def __init__(self, source: IO[bytes], name: str):
        try:
            import zstandard
        except ImportError as error:
            raise DocumentError(
                f"{name}: reading .zst needs the package zstandard; pip install zstandard"
            ) from error
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        self._error = zstandard.ZstdError
        self._source = source
        self._frame: Any = None
        self._compressed = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        """Says yes, as the buffering around it asks."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer with decompressed bytes; returns their number, 0 at the end."""
        while not self._ready:
            self._compressed = self._compressed or self._source.read(BUFFER_BYTES)
            if not self._compressed:
                if self._frame is not None:
                    raise EOFError("the file ends inside a zstandard frame")
                return 0
            self._decompress()
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _decompress(self) -> None:
        if self._frame is None:
            self._frame = self._decompressor.decompressobj()
        try:
            self._ready = memoryview(self._frame.decompress(self._compressed))
        except self._error as error:
            raise EOFError(f"damaged zstandard data: {error}") from error
        self._compressed = self._frame.unused_data if self._frame.eof else b""
        if self._frame.eof:
            self._frame = None


class StreamChain(io.RawIOBase):
    """Decompresses the bzip2 or xz streams of a file one after another.

    `BZ2File` and `LZMAFile` take what they cannot read behind a stream for the end of the file:
    zeros between two xz streams, which the format allows, would hide all that follows.
    """

    def __init__(self, source: IO[bytes], begin: Callable[[], Any], *, padding_bytes: int = 0):
        """Begins with the first stream.

        Args:
            source: The compressed bytes.
            begin: Makes a decompressor, one a stream.
            padding_bytes: The zeros between streams come in multiples of so many; 0 allows none.
        """
        self._source = source
        self._begin = begin
        self._padding_bytes = padding_bytes
        self._decompressor = begin()
        self._stream_number = 1
        self._compressed = b""

    def readable(self) -> bool:
        """Says yes, as the buffering around it asks."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer with decompressed bytes; returns their number, 0 at the end."""
        content = b""
        while not content and (not self._decompressor.eof or self._has_another()):
            if self._decompressor.needs_input and not self._compressed:
                self._compressed = self._source.read(BUFFER_BYTES)
                if not self._compressed:
                    raise EOFError(f"the file ends inside compressed stream {self._stream_number}")
            try:
                content = self._decompressor.decompress(self._compressed, len(buffer))
            except (OSError, lzma.LZMAError) as error:
                raise EOFError(f"{error} in compressed stream {self._stream_number}") from error
            self._compressed = b""  # the decompressor has taken it all
        buffer[: len(content)] = content
        return len(content)

    def _has_another(self) -> bool:
        """Goes on to the next stream; False where the file ends."""
        rest = self._decompressor.unused_data or self._source.read(BUFFER_BYTES)
        num_zeros = 0
        while self._padding_bytes and rest.startswith(b"\0"):
            behind = rest.lstrip(b"\0")
            num_zeros += len(rest) - len(behind)
            rest = behind or self._source.read(BUFFER_BYTES)
        if num_zeros and num_zeros % self._padding_bytes:
            raise EOFError(
                f"{num_zeros} zeros behind compressed stream {self._stream_number}, "
                f"not a multiple of {self._padding_bytes}"
            )
        if rest:
            self._compressed = rest
            self._decompressor = self._begin()
            self._stream_number += 1
        return bool(rest)


def decompressed(source: IO[bytes], compression: str, name: str) -> IO[bytes]:
    """Wraps a stream of compressed bytes so that it reads as plain bytes."""
    if compression == ".gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=source), BUFFER_BYTES)
    if compression == ".bz2":
        return io.BufferedReader(StreamChain(source, bz2.BZ2Decompressor), BUFFER_BYTES)
    if compression == ".xz":
        chain = StreamChain(source, lzma.LZMADecompressor, padding_bytes=XZ_PADDING_BYTES)
        return io.BufferedReader(chain, BUFFER_BYTES)
    if compression == ".zst":
        return io.BufferedReader(ZstandardFile(source, name), BUFFER_BYTES)
    return source
