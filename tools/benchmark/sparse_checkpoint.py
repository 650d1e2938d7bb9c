"""A checkpoint of many ranks of which only some files exist; they take no space on the disk."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open

from megatron.checkpoint.format import fragment_key
from megatron.checkpoint.index import index_entry, parameter_info, write_index
from megatron.checkpoint.runs import rank_file
from megatron.checkpoint.tensor_files import BLOCK_BYTES, checksums_key, write_checked_tensors
from megatron.engine.state import TrainState
from megatron.model.gpt2_model import GPT2Model
from megatron.model.parameters import spec_of

__all__ = ["KINDS", "own_range", "write_sparse_checkpoint"]

KINDS = ("fp32", "exp_avg", "exp_avg_sq")


def own_range(elements: int, ranks: int, rank: int) -> tuple[int, int]:
    """First element and number of elements of a parameter that ZeRO 3 gives a rank."""
    size = -(-elements // ranks)
    return size * rank, max(0, min(size, elements - size * rank))


def write_sparse_checkpoint(
    folder: Path, model: GPT2Model, ranks: int, with_files: Iterable[int]
) -> None:
    """A checkpoint of so many ranks with ZeRO 3, of which only some files of ranks exist."""
    folder.mkdir()
    entries, files = {}, {}
    pieces: dict[int, dict[str, int]] = {rank: {} for rank in with_files}
    for name, parameter in model.named_parameters():
        entry = index_entry(parameter_info(spec_of(parameter), 1))
        for rank in range(ranks):
            offset, length = own_range(parameter.numel(), ranks, rank)
            if length:
                entry["fragments"].append((rank_file(rank), 0, offset, length))
            if length and rank in pieces:
                pieces[rank].update({fragment_key(kind, name, 0, offset): length for kind in KINDS})
        entries[name] = entry
    for rank in range(ranks):
        files[rank_file(rank)] = {"size": 1 << 60, "header_crc32": 0}
    for rank, content in pieces.items():
        path = folder / rank_file(rank)
        files[path.name] = _write_sparse(path, content)
    (folder / "state.json").write_text(json.dumps({"counters": TrainState(3).state_dict()}))
    (folder / "mixture.json").write_text("null")
    layout = {"dp": ranks, "tp": 1, "pp": 1}
    others = ("state.json", "mixture.json")
    write_index(
        folder, layout=layout, moments=KINDS[1:], parameters=entries, files=files, others=others
    )


def _write_sparse(path: Path, pieces: dict[str, int]) -> dict[str, int]:
    """Writes a file of zeros that take no space on the disk; returns what the index says about it.

    The longest piece is written with its checksums, which those of the others begin with.
    """
    longest = {"x": torch.zeros(max(pieces.values()))}
    write_checked_tensors(path, longest)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    block, checksums = int(metadata[BLOCK_BYTES]), metadata[checksums_key("x")]
    header, position = {}, 0
    metadata = {BLOCK_BYTES: str(block)}
    for key, length in pieces.items():
        size = 4 * length
        header[key] = {
            "dtype": "F32",
            "shape": [length],
            "data_offsets": [position, position + size],
        }
        position += size
        digits = checksums[: 8 * (size // block)]
        rest = f"{zlib.crc32(bytes(size % block)):08x}" if size % block else ""
        metadata[checksums_key(key)] = digits + rest
    text = json.dumps({"__metadata__": metadata, **header}).encode()
    text += b" " * (-len(text) % 8)
    head = struct.pack("<Q", len(text)) + text
    with path.open("wb") as stream:
        stream.write(head)
        stream.truncate(len(head) + position)
    return {"size": len(head) + position, "header_crc32": zlib.crc32(head)}
