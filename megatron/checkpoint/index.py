"""``index.json`` of a checkpoint: reading, checking and writing it."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron.checkpoint.foreign import foreign_checkpoint_problem
from megatron.checkpoint.runs import grouped
from megatron.checkpoint.schema import (
    CONFIGS,
    FORMAT_VERSION,
    READ_VERSIONS,
    ParameterInfo,
    check_index,
)
from megatron.errors import CheckpointError
from megatron.files import crc32_of_file, write_text_atomic
from megatron.model.parameters import ParameterSpec
from odm.json_data import SchemaError, anything, fields, read_json
from odm.wording import shown

__all__ = [
    "config_names",
    "file_facts",
    "index_checksum",
    "index_entry",
    "parameter_info",
    "read_index",
    "write_index",
]

_MAX_INDEX_BYTES = 1 << 32


def parameter_info(spec: ParameterSpec, tp_size: int) -> ParameterInfo:
    """What an index says about a parameter that is cut over ``tp_size`` tensor-parallel ranks."""
    num_shards = 1 if spec.tp_dim is None else tp_size
    extent = spec.shard_shape[spec.tp_dim or 0] * num_shards
    return ParameterInfo(spec.logical_shape, spec.tp_dim, extent)


def config_names(folder: Path) -> list[str]:
    """Paths of the files in ``configs/`` of a checkpoint, as an index lists them."""
    return sorted(f"{CONFIGS}/{path.name}" for path in (folder / CONFIGS).glob("*"))


def file_facts(path: Path) -> dict[str, int]:
    """The index's facts about a file: its size in bytes and its CRC-32."""
    return {"size": path.stat().st_size, "crc32": crc32_of_file(path)}


def index_checksum(index: dict[str, Any]) -> int:
    """CRC-32 of the content of an index without its own checksum; JSON formatting has no effect."""
    content = {key: value for key, value in index.items() if key != "crc32"}
    return zlib.crc32(json.dumps(content, sort_keys=True, allow_nan=False).encode())


def index_entry(info: ParameterInfo) -> dict[str, Any]:
    """The index entry of a parameter, without its fragments (file, tp_rank, offset, length)."""
    return {**asdict(info), "fragments": []}


def write_index(
    folder: Path,
    *,
    layout: Mapping[str, int],
    moments: Sequence[str],
    parameters: Mapping[str, Any],
    files: Mapping[str, Any],
    others: Iterable[str],
) -> None:
    """Writes ``index.json``, the last file of a checkpoint.

    Args:
        folder: Folder of the checkpoint; it already contains all other files.
        layout: Numbers of ranks that saved it: ``dp``, ``tp``, ``pp``.
        moments: Names of the moments that are saved.
        parameters: `index_entry` of each, with the fragments of all ranks, or runs of them.
        files: What `write_checked_tensors` returned for the files of tensors.
        others: Names of further files to list; those in ``configs/`` are listed anyway.
    """
    facts = {name: file_facts(folder / name) for name in (*others, *config_names(folder))}
    index = {
        "version": FORMAT_VERSION,
        "layout": layout,
        "moments": moments,
        "parameters": {
            name: {**entry, "fragments": grouped(entry["fragments"])}
            for name, entry in parameters.items()
        },
        "files": {**files, **facts},
    }
    index["crc32"] = index_checksum(index)
    text = json.dumps(index, allow_nan=False, separators=(",", ":"))
    write_text_atomic(folder / "index.json", text + "\n")


def read_index(folder: Path) -> dict[str, Any]:
    """Reads and checks ``index.json``; a process interprets the same content only once.

    Raises:
        CheckpointError: If the index is missing, damaged or wrong; names the field.
    """
    path = folder / "index.json"
    try:
        key = (str(path), hashlib.sha256(path.read_bytes()).hexdigest())
    except OSError:
        return _read_index(folder)  # which reports why
    if key not in _LAST_READ:
        index = _read_index(folder)
        _LAST_READ.clear()
        _LAST_READ[key] = index
    return _LAST_READ[key]


_LAST_READ: dict[tuple[str, str], dict[str, Any]] = {}
"""The index that was read last, by path and digest of the file; nobody changes it."""


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / "index.json"
    if not path.is_file() and (problem := foreign_checkpoint_problem(folder)):
        raise CheckpointError(problem)
    index = read_json(
        path,
        fields({"version": anything}),
        error=CheckpointError,
        what="checkpoint index",
        max_bytes=_MAX_INDEX_BYTES,
    )
    version = index["version"]
    if type(version) is not int or version not in READ_VERSIONS:
        raise CheckpointError(
            f"{path}: has format version {shown(version)}, this program supports "
            f"{', '.join(map(str, READ_VERSIONS))}"
        )
    if index.get("crc32") != index_checksum(index):
        raise CheckpointError(f"{path}: does not match its own checksum; the file is damaged")
    try:
        check_index(index, "")
    except SchemaError as error:
        raise CheckpointError(f"{path}: {error}; the checkpoint is damaged") from error
    return index
