"""Reads parts of safetensors files, and compares what it reads with checksums in the header.

`megatron.checkpoint.tensor_files` describes the checksums.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megatron.checkpoint.tensor_files import BLOCK_BYTES, DTYPES, checksums_key
from megatron.errors import CheckpointError
from odm.json_data import SchemaError, fields, integer, list_of, mapping_of, parse_json, text

__all__ = ["TensorFile"]

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000
_PIECE_BYTES = 1 << 24
_TYPES = {name: dtype for dtype, name in DTYPES.items()}
_COUNT = integer(0, 1 << 62)
_TENSORS = mapping_of(
    fields({"dtype": text(), "shape": list_of(_COUNT), "data_offsets": list_of(_COUNT, length=2)})
)
_METADATA = mapping_of(text("(?s).*"))


@dataclass(frozen=True)
class _Entry:
    """A tensor in a file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    """Its first byte, counted from the end of the header."""
    size: int
    """Its bytes."""
    checksums: np.ndarray | None
    """Of its blocks; None in a file of an earlier version."""


class TensorFile:
    """A file of tensors. It is opened when something is read, and stays open until `close`.

    Args:
        path: The file.
        facts: What ``index.json`` says about it; without ``header_crc32`` nothing is compared.

    Raises:
        CheckpointError: If the file cannot be read, or its header is damaged.
    """

    def __init__(self, path: Path, facts: Mapping[str, int]):
        self._path = path
        self._stream: io.FileIO | None = None
        with self._readable():
            header = self._read_header(facts.get("header_crc32"))
            self._data_start = _LENGTH_BYTES + len(header)
            has_checksums = "header_crc32" in facts
            self._block, self._entries = _parsed(header, has_checksums=has_checksums)

    def __del__(self) -> None:
        if "_stream" in vars(self):
            self.close()

    @property
    def names(self) -> list[str]:
        """Names of the tensors."""
        return list(self._entries)

    def close(self) -> None:
        """Closes the file until the next `read`."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def describe(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Type (such as ``F32``) and shape of a tensor, of which nothing is read.

        Raises:
            CheckpointError: If the file has no such tensor.
        """
        if name not in self._entries:
            raise self._error(f"{name}: cannot be read (the file has no such tensor)")
        return self._entries[name].dtype, self._entries[name].shape

    def read(self, name: str, first: int = 0, end: int | None = None) -> Tensor:
        """Elements [first, end) of a flattened tensor; by default all of them.

        Raises:
            CheckpointError: If the file cannot be read, or what is read differs from its checksums.
        """
        type_name, shape = self.describe(name)
        dtype = _TYPES.get(type_name)
        if dtype is None:
            raise self._error(f"{name}: cannot be read (tensors of {type_name} are not supported)")
        last = math.prod(shape) if end is None else end
        start, stop = first * dtype.itemsize, last * dtype.itemsize
        if start >= stop:
            return torch.empty(0, dtype=dtype)
        content, begin = self._blocks(name, start, stop)
        return torch.frombuffer(content, dtype=dtype, count=last - first, offset=start - begin)

    def verify(self) -> None:
        """Compares all tensors with their checksums.

        Raises:
            CheckpointError: If the file cannot be read, or a tensor differs.
        """
        for name, entry in self._entries.items():
            for start in range(0, entry.size, _PIECE_BYTES):
                self._blocks(name, start, min(entry.size, start + _PIECE_BYTES))

    def _blocks(self, name: str, start: int, stop: int) -> tuple[bytearray, int]:
        """The blocks with the bytes [start, stop) of a tensor, and where the first one begins."""
        entry, block = self._entries[name], self._block
        first = start // block
        begin, end = first * block, min(entry.size, -(-stop // block) * block)
        with self._readable(f"{name}: "):
            content = self._read_bytes(self._data_start + entry.start + begin, end - begin)
        if entry.checksums is not None:
            whole = memoryview(content)
            for number, place in enumerate(range(0, len(content), block), first):
                if zlib.crc32(whole[place : place + block]) != entry.checksums[number]:
                    raise self._error(f"{name}: checksum differs; the file is damaged")
        return content, begin

    def _read_header(self, checksum: int | None) -> bytes:
        length = self._read_bytes(0, _LENGTH_BYTES)
        size = int.from_bytes(length, "little")
        if size > _MAX_HEADER_BYTES:
            raise SchemaError(f"a header of {size} bytes is too long")
        header = bytes(self._read_bytes(_LENGTH_BYTES, size))
        if checksum is not None and zlib.crc32(header, zlib.crc32(length)) != checksum:
            raise self._error("checksum differs from index.json; the file is damaged")
        return header

    def _read_bytes(self, start: int, count: int) -> bytearray:
        if self._stream is None:
            self._stream = open(self._path, "rb", buffering=0)
        if start + count > os.fstat(self._stream.fileno()).st_size:
            raise SchemaError("the file is cut")
        self._stream.seek(start)
        content = bytearray(count)
        rest = memoryview(content)
        while rest:
            done = self._stream.readinto(rest)
            if not done:
                raise SchemaError("the file is cut")
            rest = rest[done:]
        return content

    @contextlib.contextmanager
    def _readable(self, place: str = "") -> Iterator[None]:
        """Turns what goes wrong while reading into an error of one line."""
        try:
            yield
        except (OSError, SchemaError) as error:
            reason = getattr(error, "strerror", None) or error
            raise self._error(f"{place}cannot be read ({reason})") from error

    def _error(self, text_: str) -> CheckpointError:
        return CheckpointError(f"{self._path}: {text_}")


def _parsed(header: bytes, *, has_checksums: bool) -> tuple[int, dict[str, _Entry]]:
    """Bytes per block (1 without checksums), and the tensors of a file.

    Raises:
        SchemaError: If the header is wrong; names the place.
    """
    tensors: Any = parse_json(header)
    fields({}, {"__metadata__": _METADATA})(tensors, "")
    metadata = tensors.pop("__metadata__", {})
    _TENSORS(tensors, "")
    block = 1
    if has_checksums:
        text("[1-9][0-9]{0,17}", must="a number of bytes")(metadata.get(BLOCK_BYTES), BLOCK_BYTES)
        block = int(metadata[BLOCK_BYTES])
    entries = {}
    for name, facts in tensors.items():
        begin, end = facts["data_offsets"]
        dtype, shape = facts["dtype"], tuple(facts["shape"])
        if begin > end:
            raise SchemaError(f"{name}: ends before it begins")
        if dtype in _TYPES and end - begin != math.prod(shape) * _TYPES[dtype].itemsize:
            raise SchemaError(f"{name}: has {end - begin} bytes, not those of {dtype} {shape}")
        checksums = None
        if has_checksums:
            digits = metadata.get(checksums_key(name), "")
            checksums = _numbers(digits, count=-(-(end - begin) // block), where=name)
        entries[name] = _Entry(dtype, shape, begin, end - begin, checksums)
    return block, entries


def _numbers(digits: str, *, count: int, where: str) -> np.ndarray:
    """Checksums from their text."""
    try:
        numbers = np.frombuffer(bytes.fromhex(digits), dtype=">u4")
    except ValueError:
        numbers = np.empty(0)
    if len(numbers) != count:
        raise SchemaError(f"{where}: has not {count} checksums")
    return numbers
