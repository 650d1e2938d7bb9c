"""The layout-free checkpoint on disk: logical parameters in fragments. Imports no deepspeed.

```
global_step<N>/
  index.json              version, layout that saved it, parameters, sizes and checksums of all
  state.json              counters of the run
  mixture.json            weights, cursors and mixer of the data mixture
  rank_00000.safetensors  what a rank owns: fragments, keys "<kind>|<parameter>|<tp_rank>|<offset>",
                          and its random states, keys "random|<name>"
  configs/                the YAML files as given, and resolved.json
```
`megatron.checkpoint.schema` defines what each file must contain.

A kind is ``fp32`` (master weights) or a moment of the optimizer. An offset counts elements in the
flattened tensor-parallel shard. Vocabulary padding is never written. Whatever is read of a file
of tensors is compared with the checksums in its header, see `megatron.checkpoint.tensor_files`.
Earlier versions had other files (``rng_00000.safetensors`` for random states) and one checksum per
file, which `megatron.checkpoint.verification` compares.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron.checkpoint.foreign import STEP_NAME
from megatron.checkpoint.index import read_index
from megatron.checkpoint.rectangles import copy_from_fragment
from megatron.checkpoint.runs import Run, rank_file, rank_number, run_of
from megatron.checkpoint.schema import (
    CONFIGS,
    ParameterInfo,
    check_mixture,
    check_random_state,
    check_resolved,
    check_state,
)
from megatron.checkpoint.tensor_reader import TensorFile
from megatron.errors import CheckpointError
from megatron.model.shard_blocks import Rectangle
from megatron.model.soft_prompt import SOFT_PROMPT_NAME
from megatron.neox_arguments.resolved import in_current_form
from odm.json_data import SchemaError, read_json

__all__ = [
    "IN_CONTENT",
    "OLD_RANDOM_STATE",
    "CheckpointReader",
    "ParameterInfo",
    "checkpoint_steps",
    "fragment_key",
    "latest_step",
    "logical_tensors",
    "random_state_key",
    "read_content",
    "read_resolved_config",
    "step_folder",
]

_PREFIX = "global_step"
OLD_RANDOM_STATE = "rng_"
"""First letters of the files with random states that earlier versions wrote."""
_RANDOM_STATE = "random|"
_MAX_OPEN_FILES = 64
IN_CONTENT = {
    "state.json": check_state,
    "mixture.json": check_mixture,
    f"{CONFIGS}/resolved.json": check_resolved,
}
"""Checks of the JSON files beside the index."""


def fragment_key(kind: str, name: str, tp_rank: int, offset: int) -> str:
    """Key of a fragment inside a rank's file."""
    return f"{kind}|{name}|{tp_rank}|{offset}"


def random_state_key(name: str) -> str:
    """Key of a random state inside a rank's file."""
    return f"{_RANDOM_STATE}{name}"


def step_folder(save: Path, step: int) -> Path:
    """``<save>/global_step<N>``."""
    return save / f"global_step{step}"


def read_content(folder: Path, name: str) -> Any:
    """Reads and checks ``state.json``, ``mixture.json`` or ``configs/resolved.json``.

    Raises:
        CheckpointError: If the file cannot be read or its content is wrong; names the field.
    """
    return read_json(
        folder / name, IN_CONTENT[name], error=CheckpointError, what="part of a checkpoint"
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
    return sorted(int(match[1]) for name in names if (match := STEP_NAME.fullmatch(name)))


def latest_step(save: Path) -> int | None:
    """The step that ``<save>/latest`` names; None if it is missing or names no step."""
    try:
        with open(save / "latest", "rb") as file:
            name = file.read(256).decode("utf-8", "replace").strip()
    except OSError:
        return None
    match = STEP_NAME.fullmatch(name)
    return int(match[1]) if match else None


def _first_element(run: Run) -> int:
    return run.offset


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
        self._runs: dict[tuple[str, int], list[Run]] = {}
        """(name, tensor rank) -> where the elements of this shard are, in their order."""
        for name, facts in index["parameters"].items():
            for run in map(run_of, facts["fragments"]):
                self._runs.setdefault((name, run.tp_rank), []).append(run)
        for runs in self._runs.values():
            runs.sort(key=_first_element)
        self._files: dict[str, TensorFile] = {}
        self._in_use: list[str] = []
        """Names of the files that may be open."""

    def check_fragments(self, files: Iterable[str]) -> None:
        """Checks that these files have the listed fragments of weights, as float32.

        Raises:
            CheckpointError: If a fragment is missing or wrong; names the first such file and
                fragment.
        """
        own = [(name, rank_number(name)) for name in files]
        for (name, tp_rank), runs in self._runs.items():
            for run in runs:
                for place in run.places_in(own):
                    key = fragment_key("fp32", name, tp_rank, run.offset + place * run.length)
                    self._fragment(run.file_of(place), key, run.length)

    def random_state(self, rank: int) -> dict[str, Tensor]:
        """Random states of a rank of the run that saved; empty if they were not saved.

        Raises:
            CheckpointError: If they cannot be read, or are no random states.
        """
        names = (rank_file(rank), f"{OLD_RANDOM_STATE}{rank:05d}.safetensors")
        states = (self.random_state_in(name) for name in names if name in self.files)
        return next((state for state in states if state), {})

    def random_state_in(self, name: str) -> dict[str, Tensor]:
        """Random states in a file of a rank; empty if there are none.

        Raises:
            CheckpointError: If they cannot be read, or are no random states.
        """
        is_old = name.startswith(OLD_RANDOM_STATE)
        prefix, file = "" if is_old else _RANDOM_STATE, self.file(name)
        keys = [key for key in file.names if key.startswith(prefix)]
        state = {key.removeprefix(prefix): file.read(key) for key in keys}
        try:
            if state or is_old:
                check_random_state(state)
        except SchemaError as error:
            raise CheckpointError(
                f"{self.folder / name}: not the random states of a rank ({error})"
            ) from error
        return state

    def file(self, name: str) -> TensorFile:
        """One of the listed files of tensors; its header is read once.

        Raises:
            CheckpointError: If the header cannot be read.
        """
        if name not in self._files:
            self._files[name] = TensorFile(self.folder / name, self.files.get(name, {}))
        if name not in self._in_use:
            if len(self._in_use) >= _MAX_OPEN_FILES:
                self._files[self._in_use.pop(0)].close()
            self._in_use.append(name)
        return self._files[name]

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

    def read_rectangle(self, name: str, kind: str, part: Rectangle, *, out: Tensor) -> None:
        """Reads a part of a parameter or moment, whatever the shards in which it was saved.

        Args:
            name: The parameter.
            kind: ``fp32``, or a moment.
            part: Rows and columns of the parameter, seen as a matrix whose columns tensor
                parallelism cuts; see `megatron.model.shard_blocks`.
            out: Overwritten with the values, (rows, columns).

        Raises:
            CheckpointError: If the checkpoint does not have all of them.
        """
        info = self.info(name)
        dim = info.tp_dim or 0
        inner = math.prod(info.shape[dim + 1 :])
        if part.row_length != info.shape[dim] * inner:  # it was cut along another dimension
            whole = self.read_logical(name, kind).reshape(-1, part.row_length)
            rows = whole[part.first_row : part.first_row + part.num_rows]
            out.copy_(rows[:, part.first_column : part.first_column + part.num_columns])
            return
        num_shards = 1 if info.tp_dim is None else self.layout["tp"]
        width = info.extent // num_shards * inner
        column, end = part.first_column, part.first_column + part.num_columns
        while column < end:
            shard, first = divmod(column, width)
            num_columns = min(end - column, width - first)
            own = Rectangle(
                part.first_row,
                part.num_rows,
                first,
                num_columns,
                min(width, part.row_length - shard * width),
            )
            place = column - part.first_column
            self._read_from_shard(name, kind, shard, own, out[:, place : place + num_columns])
            column += num_columns

    def read_shard_range(
        self, name: str, kind: str, tp_rank: int, offset: int, length: int
    ) -> Tensor:
        """Elements [offset, offset + length) of a flattened saved shard, float32.

        Raises:
            CheckpointError: If the checkpoint does not have all of them.
        """
        values = torch.empty(1, length)
        if length:
            part = Rectangle(0, 1, offset, length, offset + length)
            self._read_from_shard(name, kind, tp_rank, part, values)
        return values[0]

    def _read_from_shard(
        self, name: str, kind: str, tp_rank: int, part: Rectangle, out: Tensor
    ) -> None:
        if kind not in ("fp32", *self.moment_names):
            raise CheckpointError(
                f"{self.folder}: has no {kind}, only fp32 and {list(self.moment_names)}"
            )
        if kind not in self.kinds_of(name):
            out.zero_()  # it has never been trained
            return
        runs = self._runs.get((name, tp_rank), [])
        position = part.start
        number = max(0, bisect_right(runs, position, key=_first_element) - 1)
        while position < part.end:
            if number >= len(runs) or not runs[number].offset <= position:
                raise CheckpointError(
                    f"{self.folder}: {kind} of {name}: elements from {position} on are missing"
                )
            run = runs[number]
            while position < min(run.end, part.end):
                place = (position - run.offset) // run.length
                start = run.offset + place * run.length
                key = fragment_key(kind, name, tp_rank, start)
                read = self._fragment(run.file_of(place), key, run.length)
                copy_from_fragment(read, start, run.length, part, out)
                position = start + run.length
            number += 1

    def read_logical(self, name: str, kind: str = "fp32") -> Tensor:
        """One whole parameter (or moment) in its logical shape, float32."""
        info = self.info(name)
        rows = math.prod(info.shape[: info.tp_dim or 0])
        columns = math.prod(info.shape) // rows
        values = torch.empty(rows, columns)
        self.read_rectangle(name, kind, Rectangle(0, rows, 0, columns, columns), out=values)
        return values.view(info.shape)

    def _fragment(self, name: str, key: str, length: int) -> Callable[[int, int], Tensor]:
        """A function that reads elements [first, end) of a fragment."""
        file = self.file(name)
        dtype, shape = file.describe(key)
        if dtype != "F32" or shape != (length,):
            raise CheckpointError(
                f"{self.folder / name}: {key}: is {dtype} of shape {shape}, "
                f"index.json says F32 of [{length}]"
            )
        return partial(file.read, key)


def logical_tensors(folder: Path, kind: str = "fp32") -> Iterator[tuple[str, Tensor]]:
    """Yields (name, tensor) of a checkpoint of any layout, one parameter in memory at a time."""
    reader = CheckpointReader(folder)
    for name in reader.parameters:
        yield name, reader.read_logical(name, kind)
