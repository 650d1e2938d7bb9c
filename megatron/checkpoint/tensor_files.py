"""Writes safetensors files: flushed to the disk, and checksummed on the way."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron.errors import CheckpointError
from megatron.files import flush_to_disk

__all__ = ["write_tensors"]

_BLOCK_BYTES = 1 << 22
_DTYPES = {
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


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> dict[str, int]:
    """Writes a safetensors file and flushes it to the disk; as for all files, the umask decides.

    Args:
        path: The file to create or replace.
        tensors: On the CPU; names as keys.
        metadata: Texts for the header.

    Returns:
        ``size`` in bytes and ``crc32`` of what was written, which need not be read again.

    Raises:
        CheckpointError: If the disk is full.
    """
    head = _header(tensors, metadata)
    checksum, size = zlib.crc32(head), len(head)
    try:
        with path.open("wb") as stream:
            stream.write(head)
            for tensor in _in_file_order(tensors).values():
                content = memoryview(_bytes_of(tensor))
                for first in range(0, len(content), _BLOCK_BYTES):
                    block = content[first : first + _BLOCK_BYTES]
                    checksum = zlib.crc32(block, checksum)
                    stream.write(block)
                size += len(content)
            flush_to_disk(stream)
    except OSError as error:
        raise CheckpointError(
            f"{path}: {error.strerror}; check the free space; nothing was written"
        ) from error
    return {"size": size, "crc32": checksum}


def _header(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None) -> bytes:
    """Length and JSON of the header, padded so that the tensors after it are aligned."""
    entries: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    position = 0
    for name, tensor in _in_file_order(tensors).items():
        end = position + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _in_file_order(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Wide elements first, so that all are aligned."""
    return dict(sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])))


def _bytes_of(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy()
