"""Reads compressed streams to their end, or reports that they are damaged."""

import bz2
import gzip
import io
import lzma
from collections.abc import Callable
from typing import IO, Any

from megatron.tokenizer.errors import DocumentError
from megatron.tokenizer.zstandard_frames import ZstandardFile, too_much_memory
from odm.wording import counted

BUFFER_BYTES = 1 << 20

LEAST_MEMORY_LIMIT_BYTES = 1 << 27
"""Memory for files of zstd and xz with default settings, and enough for xz -9."""

XZ_PADDING_BYTES = 4
"""Zeros may follow each stream of an .xz file; their number is a multiple of this."""


class StreamChain(io.RawIOBase):
    """Decompresses the bzip2 or xz streams of a file one after another.

    `BZ2File` and `LZMAFile` stop at data that they cannot read after a stream. Zeros between two xz
    streams, which the format allows, would hide everything that follows.
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
            begin: Makes a decompressor, one per stream.
            padding_bytes: Zeros between streams are a multiple of this number; 0 allows none.
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
        """Returns True, because the buffer around it asks."""
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
                f"{counted(num_zeros, 'zero')} behind compressed stream {self._stream_number}, not "
                f"a multiple of {self._padding_bytes}"
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
        name: Name of the file, for messages.
        limit_bytes: Memory that decompression may use; at least 128 MiB are allowed.

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
