"""Writes safetensors files, with checksums of their content in the header.

The checksums are in ``__metadata__`` of the header: ``block_bytes``, and for each tensor
``crc32:<name>``, the CRC-32 of its blocks, eight hexadecimal digits each. ``index.json`` of a
checkpoint has the checksum of the header. So whoever reads a part of a tensor verifies that part
and no more. Files of earlier versions have no such checksums; ``index.json`` has that of the whole
file.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron.errors import CheckpointError
from megatron.files import flush_to_disk

__all__ = ["BLOCK_BYTES", "DTYPES", "checksums_key", "write_checked_tensors", "write_tensors"]

BLOCK_BYTES = "block_bytes"
"""Name in the metadata: bytes per checksum."""

_BLOCK_BYTES = 1 << 14
"""Small, since whoever reads one byte of a block reads it whole."""
_MAX_BLOCKS = 1 << 20
"""Larger files have larger blocks: a header of safetensors has at most 100 MB."""
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def checksums_key(name: str) -> str:
    """Name in the metadata: the checksums of a tensor's blocks, eight digits each."""
    return f"crc32:{name}"


def write_checked_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """`write_tensors` with checksums in the header.

    Returns:
        What ``index.json`` says about the file: its ``size`` in bytes, and ``header_crc32``.
    """
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    block = _BLOCK_BYTES
    while total // block > _MAX_BLOCKS:
        block *= 2
    checksums = {
        checksums_key(name): "".join(f"{crc:08x}" for crc in _checksums(_bytes_of(tensor), block))
        for name, tensor in tensors.items()
    }
    head = write_tensors(path, tensors, {BLOCK_BYTES: str(block), **checksums})
    return {"size": len(head) + total, "header_crc32": zlib.crc32(head)}


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> bytes:
    """Writes a safetensors file and flushes it to the disk; as for all files, the umask decides.

    Args:
        path: The file to create or replace.
        tensors: On the CPU; names as keys.
        metadata: Texts for the header.

    Returns:
        The header.

    Raises:
        CheckpointError: If the disk is full.
    """
    head = _header(tensors, metadata)
    try:
        with path.open("wb") as stream:
            stream.write(head)
            for tensor in _in_file_order(tensors).values():
                stream.write(_bytes_of(tensor))
            flush_to_disk(stream)
    except OSError as error:
        raise CheckpointError(
            f"{path}: {error.strerror}; check the free space; nothing was written"
        ) from error
    return head


def _checksums(content: Any, block: int) -> Iterator[int]:
    for first in range(0, len(content), block):
        yield zlib.crc32(content[first : first + block])


def _header(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None) -> bytes:
    """Length and JSON of the header, padded so that the tensors after it are aligned."""
    entries: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    position = 0
    for name, tensor in _in_file_order(tensors).items():
        end = position + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    content = json.dumps(entries, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    return struct.pack("<Q", len(content)) + content


def _in_file_order(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Wide elements first, so that all are aligned."""
    return dict(sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])))


def _bytes_of(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy()
