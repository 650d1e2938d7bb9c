"""The layout-free checkpoint on disk: logical parameters in fragments. Imports no deepspeed.

```
global_step<N>/
  index.json              version, layout that saved it, parameters, sizes and checksums of all
  state.json              counters of the run
  mixture.json            weights, cursors and mixer of the data mixture
  rank_00000.safetensors  fragments, keys "<kind>|<parameter>|<tp_rank>|<offset>"
  rng_00000.safetensors   random states of each rank
  configs/                the YAML files as given, and resolved.json
```
`megatron.checkpoint.schema` defines what each file must contain.

A kind is ``fp32`` (master weights) or a moment of the optimizer. An offset counts elements in the
flattened tensor-parallel shard. Vocabulary padding is never written.
"""

from __future__ import annotations

import math
import os
import re
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from megatron.checkpoint.index import read_index
from megatron.checkpoint.schema import (
    CONFIGS,
    RUN_FILES,
    ParameterInfo,
    check_mixture,
    check_random_state,
    check_resolved,
    check_state,
)
from megatron.errors import CheckpointError
from megatron.files import crc32_of_file
from megatron.model.soft_prompt import SOFT_PROMPT_NAME
from megatron.neox_arguments.resolved import in_current_form
from odm.json_data import read_json

__all__ = [
    "CheckpointReader",
    "ParameterInfo",
    "checkpoint_steps",
    "fragment_key",
    "latest_step",
    "logical_tensors",
    "read_content",
    "read_random_state",
    "read_resolved_config",
    "step_folder",
    "verify",
]

_PREFIX = "global_step"
_STEP_NAME = re.compile(rf"{_PREFIX}(0|[1-9][0-9]{{0,17}})")
"""Names as we write them: a step that fits into 64 bits, without leading zeros."""
_IN_CONTENT = {
    "state.json": check_state,
    "mixture.json": check_mixture,
    f"{CONFIGS}/resolved.json": check_resolved,
}
"""Checks of the JSON files beside the index."""


def fragment_key(kind: str, name: str, tp_rank: int, offset: int) -> str:
    """Key of a fragment inside a rank's file."""
    return f"{kind}|{name}|{tp_rank}|{offset}"


def step_folder(save: Path, step: int) -> Path:
    """``<save>/global_step<N>``."""
    return save / f"global_step{step}"


def read_content(folder: Path, name: str) -> Any:
    """Reads and checks ``state.json``, ``mixture.json`` or ``configs/resolved.json``.

    Raises:
        CheckpointError: If the file cannot be read or its content is wrong; names the field.
    """
    return read_json(
        folder / name, _IN_CONTENT[name], error=CheckpointError, what="part of a checkpoint"
    )


def read_resolved_config(folder: Path) -> dict[str, Any] | None:
    """The configuration of the run that saved a checkpoint, in today's form; None if it has none.

    Raises:
        CheckpointError: If the file cannot be read or describes no network.
    """
    name = f"{CONFIGS}/resolved.json"
    return in_current_form(read_content(folder, name)) if (folder / name).exists() else None


def checkpoint_steps(save: Path) -> list[int]:
    """Steps of the complete checkpoints below ``save``, ascending; others end in ``.tmp``."""
    names = (entry.name for entry in save.glob(f"{_PREFIX}*") if entry.is_dir())
    return sorted(int(match[1]) for name in names if (match := _STEP_NAME.fullmatch(name)))


def latest_step(save: Path) -> int | None:
    """The step that ``<save>/latest`` names; None if it is missing or names no step."""
    try:
        with open(save / "latest", "rb") as file:
            name = file.read(256).decode("utf-8", "replace").strip()
    except OSError:
        return None
    match = _STEP_NAME.fullmatch(name)
    return int(match[1]) if match else None


def verify(folder: Path, *, part: int = 0, num_parts: int = 1) -> None:
    """Checks all files of a checkpoint: presence, size, checksum and content.

    Args:
        folder: A ``global_step<N>`` folder.
        part: Number of this part, from 0. With ``num_parts`` > 1 only every ``num_parts``-th file
            is read, so that ranks share the work; index and sizes are always checked.
        num_parts: Number of ranks sharing the work.

    Raises:
        CheckpointError: If a file is missing, cut, changed or wrong; names the first such file, and
            the field if its content is wrong.
    """
    reader = CheckpointReader(folder)
    for number, name in enumerate(_names_to_check(reader)):
        path, facts = folder / name, reader.files.get(name)
        if facts is not None:
            if not os.path.isfile(path):  # false for a name that is too long, too
                raise CheckpointError(f"{path}: listed in index.json but missing")
            size = path.stat().st_size
            if size != facts["size"]:
                raise CheckpointError(f"{path}: {size} bytes, index.json says {facts['size']}")
        if number % num_parts != part:
            continue
        if facts is not None and crc32_of_file(path) != facts["crc32"]:
            raise CheckpointError(f"{path}: checksum differs from index.json; the file is damaged")
        if name in _IN_CONTENT:
            read_content(folder, name)
        elif name.startswith("rng_"):
            read_random_state(path)
    reader.check_fragments(part=part, num_parts=num_parts)
    if part == 0:
        _check_steps(folder)


def _check_steps(folder: Path) -> None:
    """Raises an error if the mixture is of a later step than the run, so of another checkpoint."""
    try:
        state, mixture = (read_content(folder, name) for name in RUN_FILES)
    except CheckpointError:  # reported by the rank that checks this file
        return
    step = state["counters"]["step"]
    if mixture is not None and mixture["step"] > step:
        raise CheckpointError(
            f"{folder / 'mixture.json'}: is of step {mixture['step']}, state.json of step {step}; "
            "the two files belong to different checkpoints"
        )


def _names_to_check(reader: CheckpointReader) -> list[str]:
    """Listed files, and the configuration of an older checkpoint, which has no checksum."""
    unlisted = [name for name in _IN_CONTENT if (reader.folder / name).exists()]
    return sorted({*reader.files, *unlisted})


def read_random_state(path: Path) -> dict[str, Tensor]:
    """Reads the random states of a rank.

    Raises:
        CheckpointError: If the file cannot be read or does not contain random states.
    """
    try:
        state = load_file(path)
        check_random_state(state)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: not the random states of a rank ({error})") from error
    return state


class CheckpointReader:
    """Reads a checkpoint by parameter name, in one process, without deepspeed."""

    def __init__(self, folder: Path):
        """Reads the index.

        Raises:
            CheckpointError: If the index is missing or wrong; names the field.
        """
        self.folder = Path(folder)
        index = read_index(self.folder)
        self.layout: dict[str, int] = index["layout"]
        self.moment_names: tuple[str, ...] = tuple(index["moments"])
        self.files: dict[str, dict[str, int]] = index["files"]
        """Path of a file below the folder -> its size and checksum."""
        self.parameters = {
            name: ParameterInfo(tuple(facts["shape"]), facts["tp_dim"], facts["extent"])
            for name, facts in index["parameters"].items()
        }
        self.shapes = {name: info.shape for name, info in self.parameters.items()}
        """Logical shape of each parameter."""
        # {(name, tp_rank): [(offset, length, file)]}, sorted by offset
        self._fragments: dict[tuple[str, int], list[tuple[int, int, str]]] = {}
        for name, facts in index["parameters"].items():
            for file, tp_rank, offset, length in facts["fragments"]:
                self._fragments.setdefault((name, tp_rank), []).append((offset, length, file))
        for pieces in self._fragments.values():
            pieces.sort()
        self._open_files: dict[str, Any] = {}

    def check_fragments(self, *, part: int = 0, num_parts: int = 1) -> None:
        """Checks that all listed fragments of weights are in the files, as float32.

        Args:
            part: Number of this part, from 0. With ``num_parts`` > 1 only every ``num_parts``-th
                file is checked.
            num_parts: Number of ranks sharing the work.

        Raises:
            CheckpointError: If a fragment is missing or wrong; names the first such file and
                fragment.
        """
        own = set(sorted(self.files)[part::num_parts])
        for (name, tp_rank), pieces in self._fragments.items():
            for offset, length, file in pieces:
                if file in own:
                    self._fragment(file, fragment_key("fp32", name, tp_rank, offset), length)

    def info(self, name: str) -> ParameterInfo:
        """Shape of a parameter, and how it is cut into shards.

        Raises:
            CheckpointError: If the checkpoint has no such parameter.
        """
        try:
            return self.parameters[name]
        except KeyError:
            raise CheckpointError(
                f"{self.folder}: no parameter {name!r}; the checkpoint belongs to another model"
            ) from None

    def kinds_of(self, name: str) -> tuple[str, ...]:
        """What there is of a parameter: ``fp32`` and its moments, which frozen ones do not have."""
        is_frozen = SOFT_PROMPT_NAME in self.parameters and name != SOFT_PROMPT_NAME
        return ("fp32",) if is_frozen else ("fp32", *self.moment_names)

    def read_shard_range(
        self, name: str, kind: str, tp_rank: int, offset: int, length: int
    ) -> Tensor:
        """Elements [offset, offset + length) of a flattened saved shard, float32.

        Raises:
            CheckpointError: If the checkpoint does not have all of them.
        """
        if kind not in ("fp32", *self.moment_names):
            raise CheckpointError(
                f"{self.folder}: has no {kind}, only fp32 and {list(self.moment_names)}"
            )
        if kind not in self.kinds_of(name):
            return torch.zeros(length)  # it has never been trained
        pieces = self._fragments.get((name, tp_rank), [])
        result = torch.empty(length, dtype=torch.float32)
        position, end = offset, offset + length
        number = max(0, bisect_right(pieces, (offset, 1 << 62, "")) - 1)
        while position < end:
            if number >= len(pieces) or not pieces[number][0] <= position:
                raise CheckpointError(
                    f"{self.folder}: {kind} of {name}: elements from {position} on are missing"
                )
            start, size, file = pieces[number]
            stop = min(end, start + size)
            if stop > position:
                tensor = self._fragment(file, fragment_key(kind, name, tp_rank, start), size)
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

    def _fragment(self, file: str, key: str, length: int) -> Any:
        """A fragment in a file, opened so that ranges of it can be read."""
        path = self.folder / file
        try:
            if file not in self._open_files:
                self._open_files[file] = safe_open(path, framework="pt")
            piece = self._open_files[file].get_slice(key)
            shape, dtype = list(piece.get_shape()), piece.get_dtype()
        except (OSError, SafetensorError) as error:
            reason = " ".join(str(error).split())  # names of tensors in it may hold line breaks
            raise CheckpointError(f"{path}: {key}: cannot be read ({reason})") from error
        if dtype != "F32" or shape != [length]:
            raise CheckpointError(
                f"{path}: {key}: is {dtype} of shape {shape}, index.json says F32 of [{length}]"
            )
        return piece


def logical_tensors(folder: Path, kind: str = "fp32") -> Iterator[tuple[str, Tensor]]:
    """Yields (name, tensor) of a checkpoint of any layout, one parameter in memory at a time."""
    reader = CheckpointReader(folder)
    for name in reader.parameters:
        yield name, reader.read_logical(name, kind)
