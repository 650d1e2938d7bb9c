"""Reads compressed streams to their very end, or says that they are damaged."""

import bz2
import gzip
import io
import lzma
from collections.abc import Callable
from typing import IO, Any

from megatron.tokenizer.errors import DocumentError
from megatron.tokenizer.zstandard_frames import ZstandardFile, too_much_memory

BUFFER_BYTES = 1 << 20

LEAST_MEMORY_LIMIT_BYTES = 1 << 27
"""What zstd and xz take for their own files unless told otherwise, with room to spare for xz -9."""

XZ_PADDING_BYTES = 4
"""Between and behind the streams of an .xz file may lie zeros, a multiple of so many."""


class StreamChain(io.RawIOBase):
    """Decompresses the bzip2 or xz streams of a file one after another.

    `BZ2File` and `LZMAFile` take what they cannot read behind a stream for the end of the file:
    zeros between two xz streams, which the format allows, would hide all that follows.
    """

    def __init__(
        self,
        source: IO[bytes],
        begin: Callable[[], Any],
        *,
        padding_bytes: int = 0,
        out_of_memory: Callable[[], DocumentError] | None = None,
    ):
        """Begins with the first stream.

        Args:
            source: The compressed bytes.
            begin: Makes a decompressor, one a stream.
            padding_bytes: The zeros between streams come in multiples of so many; 0 allows none.
            out_of_memory: Makes the error for a decompressor that reached its own memory limit.
        """
        self._source = source
        self._out_of_memory = out_of_memory
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
                if self._out_of_memory and "limit" in str(error):  # liblzma's own word for it
                    raise self._out_of_memory() from error
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


def decompressed(source: IO[bytes], compression: str, name: str, *, limit_bytes: int) -> IO[bytes]:
    """Wraps a stream of compressed bytes so that it reads as plain bytes.

    Args:
        source: The compressed bytes, buffered.
        compression: Suffix of the format; empty leaves the bytes as they are.
        name: Of the file, for messages.
        limit_bytes: Memory that decompressing may hold, where that is more than 128 MiB.

    Raises:
        DocumentError: The format needs a package that is not installed; later, while reading:
            the data need more memory.
        EOFError: There are no bytes at all, which no format allows, but some libraries do.
    """
    limit_bytes = max(limit_bytes, LEAST_MEMORY_LIMIT_BYTES)
    if compression and not source.peek(1):  # type: ignore[attr-defined]  # of buffered ones
        raise EOFError("the file is empty")
    if compression == ".gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=source), BUFFER_BYTES)
    if compression == ".bz2":
        return io.BufferedReader(StreamChain(source, bz2.BZ2Decompressor), BUFFER_BYTES)
    if compression == ".xz":
        chain = StreamChain(
            source,
            lambda: lzma.LZMADecompressor(memlimit=limit_bytes),
            padding_bytes=XZ_PADDING_BYTES,
            out_of_memory=lambda: too_much_memory(name, None, limit_bytes),
        )
        return io.BufferedReader(chain, BUFFER_BYTES)
    if compression == ".zst":
        return io.BufferedReader(
            ZstandardFile(source, name, memory_limit_bytes=limit_bytes), BUFFER_BYTES
        )
    return source
