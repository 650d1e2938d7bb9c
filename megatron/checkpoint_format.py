"""The layout-free checkpoint on disk: logical parameters, cut into fragments. No deepspeed here.

```
global_step<N>/
  index.json              version, layout that saved it, parameters, sizes and checksums of all
  state.json              counters of the run
  mixture.json            weights, cursors and mixer of the data mixture
  rank_00000.safetensors  fragments, keys "<kind>|<parameter>|<tp_rank>|<offset>"
  rng_00000.safetensors   random states of each rank
  configs/                the YAML files as given, and resolved.json
```
A kind is ``fp32`` (master weights) or a moment of the optimizer. An offset counts elements in the
flattened tensor-parallel shard. Vocabulary padding is never written.
"""

from __future__ import annotations

import json
import math
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from megatron.errors import CheckpointError
from megatron.files import crc32_of_file
from megatron.foreign_checkpoints import foreign_checkpoint_problem
from megatron.model.parameters import ParameterFacts

__all__ = [
    "CheckpointReader",
    "ParameterInfo",
    "checkpoint_steps",
    "file_facts",
    "fragment_key",
    "index_checksum",
    "latest_step",
    "logical_tensors",
    "parameter_info",
    "read_resolved_config",
    "step_folder",
    "verify",
]

FORMAT_VERSION = 1


@dataclass(frozen=True)
class ParameterInfo:
    """What every rank must agree on about a parameter."""

    shape: tuple[int, ...]
    """Logical shape: unsharded, without vocabulary padding."""
    tp_dim: int | None
    """Dimension that tensor parallelism cuts; None when replicated."""
    extent: int
    """Size of that dimension over all shards as saved, vocabulary padding included."""

    def shard_shape(self, tp_rank: int, tp_size: int) -> tuple[int, ...]:
        """Shape of a saved shard, without padding."""
        shape = list(self.shape)
        if self.tp_dim is not None:
            size = self.extent // tp_size
            shape[self.tp_dim] = max(0, min(size, shape[self.tp_dim] - size * tp_rank))
        return tuple(shape)


def parameter_info(facts: ParameterFacts, tp_size: int) -> ParameterInfo:
    """What an index says of a parameter that ``tp_size`` tensor-parallel ranks hold."""
    num_shards = 1 if facts.tp_dim is None else tp_size
    extent = facts.shard_shape[facts.tp_dim or 0] * num_shards
    return ParameterInfo(facts.logical_shape, facts.tp_dim, extent)


def fragment_key(kind: str, name: str, tp_rank: int, offset: int) -> str:
    """Name of a fragment inside a rank's file."""
    return f"{kind}|{name}|{tp_rank}|{offset}"


def step_folder(save: Path, step: int) -> Path:
    """``<save>/global_step<N>``."""
    return save / f"global_step{step}"


def read_resolved_config(folder: Path) -> dict[str, Any] | None:
    """The configuration of the run that made a checkpoint, by group; None where it holds none.

    Raises:
        CheckpointError: If the file cannot be read.
    """
    path = folder / "configs" / "resolved.json"
    if not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}); correct it, or remove it to load without comparing"
        ) from error


def checkpoint_steps(save: Path) -> list[int]:
    """Steps of the complete checkpoints below ``save``, ascending; torn ones are named .tmp."""
    prefix = "global_step"
    names = (entry.name for entry in save.glob(f"{prefix}*") if entry.is_dir())
    return sorted(int(name[len(prefix) :]) for name in names if name[len(prefix) :].isdecimal())


def latest_step(save: Path) -> int | None:
    """The step that ``<save>/latest`` names; None where it is missing or names none."""
    try:
        name = (save / "latest").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
    step = name.removeprefix("global_step")
    return int(step) if step.isdecimal() else None


def verify(folder: Path, *, part: int = 0, num_parts: int = 1) -> None:
    """Checks presence, size and checksum of the files that ``index.json`` lists.

    Args:
        folder: A ``global_step<N>`` folder.
        part: With ``num_parts`` > 1, checks every ``num_parts``-th file only, so that ranks share
            the reading; sizes are always checked for all.
        num_parts: Number of ranks sharing the work.

    Raises:
        CheckpointError: Naming the first file that is missing, cut or changed.
    """
    index = _read_index(folder)
    for number, (name, facts) in enumerate(sorted(index["files"].items())):
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path}: listed in index.json but missing")
        size = path.stat().st_size
        if size != facts["size"]:
            raise CheckpointError(f"{path}: {size} bytes, index.json says {facts['size']}")
        if number % num_parts == part and crc32_of_file(path) != facts["crc32"]:
            raise CheckpointError(f"{path}: checksum differs from index.json; the file is damaged")


def file_facts(path: Path) -> dict[str, int]:
    """What an index says of a file: its size in bytes and its CRC-32."""
    return {"size": path.stat().st_size, "crc32": crc32_of_file(path)}


def index_checksum(index: dict[str, Any]) -> int:
    """CRC-32 of what an index says, its own checksum left out; layout of the text is free."""
    content = {key: value for key, value in index.items() if key != "crc32"}
    return zlib.crc32(json.dumps(content, sort_keys=True, allow_nan=False).encode())


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / "index.json"
    if not path.is_file() and (problem := foreign_checkpoint_problem(folder)):
        raise CheckpointError(problem)
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable checkpoint index ({error})") from error
    if not isinstance(index, dict):
        raise CheckpointError(f"{path}: not a checkpoint index; the file is damaged")
    if index.get("version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format version {index.get('version')!r}, this program reads {FORMAT_VERSION}"
        )
    if index.get("crc32") != index_checksum(index):
        raise CheckpointError(f"{path}: does not match its own checksum; the file is damaged")
    return index


class CheckpointReader:
    """Random access to a checkpoint by parameter name, in one process, without deepspeed."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        index = _read_index(self.folder)
        self.layout: dict[str, int] = index["layout"]
        self.moment_names: tuple[str, ...] = tuple(index["moments"])
        self.parameters = {
            name: ParameterInfo(tuple(facts["shape"]), facts["tp_dim"], facts["extent"])
            for name, facts in index["parameters"].items()
        }
        # {(name, tp_rank): [(offset, length, file)]}, by offset
        self._fragments: dict[tuple[str, int], list[tuple[int, int, str]]] = {}
        for name, facts in index["parameters"].items():
            for file, tp_rank, offset, length in facts["fragments"]:
                self._fragments.setdefault((name, tp_rank), []).append((offset, length, file))
        for pieces in self._fragments.values():
            pieces.sort()
        self._open_files: dict[str, Any] = {}

    def info(self, name: str) -> ParameterInfo:
        """Shape and cut of a parameter.

        Raises:
            CheckpointError: If the checkpoint holds no such parameter.
        """
        try:
            return self.parameters[name]
        except KeyError:
            raise CheckpointError(
                f"{self.folder}: no parameter {name!r}; the checkpoint belongs to another model"
            ) from None

    def read_shard_range(
        self, name: str, kind: str, tp_rank: int, offset: int, length: int
    ) -> Tensor:
        """Elements [offset, offset + length) of a flattened shard as saved, float32.

        Raises:
            CheckpointError: If the checkpoint does not hold all of them.
        """
        if kind not in ("fp32", *self.moment_names):
            raise CheckpointError(
                f"{self.folder}: holds no {kind}, only fp32 and {list(self.moment_names)}"
            )
        pieces = self._fragments.get((name, tp_rank), [])
        result = torch.empty(length, dtype=torch.float32)
        position, end = offset, offset + length
        number = max(0, bisect_right(pieces, (offset, 1 << 62, "")) - 1)
        while position < end:
            if number >= len(pieces) or not pieces[number][0] <= position:
                raise CheckpointError(
                    f"{self.folder}: {kind} of {name} lacks elements from {position} on"
                )
            start, size, file = pieces[number]
            stop = min(end, start + size)
            if stop > position:
                tensor = self._file(file).get_slice(fragment_key(kind, name, tp_rank, start))
                result[position - offset : stop - offset] = tensor[position - start : stop - start]
                position = stop
            number += 1
        return result

    def read_logical(self, name: str, kind: str = "fp32") -> Tensor:
        """One whole parameter (or moment) in its logical shape, float32."""
        info = self.info(name)
        tp_size = self.layout["tp"] if info.tp_dim is not None else 1
        shards = []
        for tp_rank in range(tp_size):
            shape = info.shard_shape(tp_rank, tp_size)
            flat = self.read_shard_range(name, kind, tp_rank, 0, math.prod(shape))
            shards.append(flat.view(shape))
        return shards[0] if tp_size == 1 else torch.cat(shards, dim=info.tp_dim or 0)

    def _file(self, name: str):
        if name not in self._open_files:
            self._open_files[name] = safe_open(self.folder / name, framework="pt")
        return self._open_files[name]


def logical_tensors(folder: Path, kind: str = "fp32") -> Iterator[tuple[str, Tensor]]:
    """Yields (name, tensor) of a checkpoint of any layout, one parameter in memory at a time."""
    reader = CheckpointReader(folder)
    for name in reader.parameters:
        yield name, reader.read_logical(name, kind)
