"""Frames that are written out byte by byte, as RFC 8878 has them."""

import io

import pytest
import zstandard

from megatron.tokenizer.errors import DocumentError
from megatron.tokenizer.zstandard_frames import ZstandardFile

MAGIC = b"\x28\xb5\x2f\xfd"
KIBIBYTE = 1 << 10


def block(content: bytes, *, is_last: bool = True, repeat: int | None = None) -> bytes:
    """A block of bytes as they are, or of one byte that is repeated."""
    kind, size = (0, len(content)) if repeat is None else (1, repeat)
    return (size << 3 | kind << 1 | is_last).to_bytes(3, "little") + content


def skippable(content: bytes, *, number: int = 0) -> bytes:
    return bytes([0x50 + number]) + b"\x2a\x4d\x18" + len(content).to_bytes(4, "little") + content


HELLO = MAGIC + b"\x20\x05" + block(b"hello")  # a single segment; its size in one byte
TWO_BYTES = MAGIC + b"\x60" + (300 - 256).to_bytes(2, "little") + block(b"a" * 300)
WINDOW = MAGIC + b"\x00\x57"  # 2^(10 + 10) bytes and 7 eighths of them
FRAMES = {
    "one byte of size": (HELLO, b"hello"),
    "two bytes of size": (TWO_BYTES, b"a" * 300),
    "four bytes of size": (
        MAGIC + b"\xa0" + (5).to_bytes(4, "little") + block(b"hello"),
        b"hello",
    ),
    "a dictionary's number of four bytes": (
        MAGIC + b"\x23" + bytes(4) + b"\x05" + block(b"hello"),
        b"hello",
    ),
    "a window and blocks": (
        WINDOW + block(b"one ", is_last=False) + block(b"two"),
        b"one two",
    ),
    "a byte again and again": (
        WINDOW + block(b"a", is_last=False, repeat=70_000) + block(b"b", repeat=3),
        b"a" * 70_000 + b"bbb",
    ),
    "frames one behind the other": (HELLO + TWO_BYTES, b"hello" + b"a" * 300),
    "frames without text": (
        skippable(bytes(3 << 20)) + HELLO + skippable(b"", number=15) + HELLO + skippable(b"y"),
        b"hellohello",
    ),
    "a checksum behind the last of several blocks": (
        zstandard.ZstdCompressor(write_checksum=True).compress(bytes(range(256)) * 2000),
        bytes(range(256)) * 2000,
    ),
}


def read(frames: bytes, *, limit_bytes: int = 1 << 30) -> bytes:
    return ZstandardFile(io.BytesIO(frames), "a.zst", memory_limit_bytes=limit_bytes).readall()


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_gives_its_text(name):
    frames, content = FRAMES[name]
    assert read(frames) == content


@pytest.mark.parametrize(
    ("frames", "needed_bytes"),
    [(TWO_BYTES, 300), (WINDOW + block(b"a"), 1920 * KIBIBYTE), (HELLO + TWO_BYTES, 300)],
)
def test_a_window_of_the_limit_is_read_and_one_byte_more_is_refused(frames, needed_bytes):
    read(frames, limit_bytes=needed_bytes)
    with pytest.raises(DocumentError, match=r"a\.zst: decompression .*--max-record-mb"):
        read(frames, limit_bytes=needed_bytes - 1)


@pytest.mark.parametrize("name", FRAMES)
def test_a_file_that_ends_inside_a_frame_is_damaged(name):
    with pytest.raises(EOFError, match=r"inside a zstandard frame|damaged zstandard data"):
        read(FRAMES[name][0][:-1])
