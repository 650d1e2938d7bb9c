"""Parameters of a checkpoint or of a folder for transformers, read a few rows at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from megatron.checkpoint.format import CheckpointReader, read_content
from megatron.checkpoint.opening import ParameterReader
from megatron.checkpoint.schema import RUN_FILES
from megatron.errors import CheckpointError
from odm.json_data import SchemaError, fields, integer, read_json
from tools.checkpoints.single_process import find_source
from tools.hf.families import family_of_config
from tools.hf.settings import RunSettings, resolve_model_fields
from tools.hf.weight_files import WeightFiles
from tools.hf.weights import Weight

__all__ = [
    "CheckpointSource",
    "ModelFolderSource",
    "TensorSource",
    "open_source",
    "row_blocks",
    "source_of",
]

BLOCK_ELEMENTS = 1 << 22
"""Elements of a tensor in memory at a time: 16 MiB in float32, unless one row is larger."""


class TensorSource(Protocol):
    """Tensors by name and kind, whatever files they are divided into."""

    @property
    def folder(self) -> Path:
        """The folder of the files."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Logical shape of each parameter."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """``fp32``, the weights themselves, and the moments of the optimizer that there are."""

    def rows(self, name: str, kind: str, first: int, end: int) -> Tensor:
        """Rows [first, end) of a tensor in its logical shape, float32."""

    def facts(self) -> dict[str, Any]:
        """Other facts than the tensors, as JSON data."""


@dataclass(frozen=True)
class CheckpointSource:
    """A ``global_step<N>`` folder of any layout."""

    folder: Path
    reader: CheckpointReader

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """As in `TensorSource`."""
        return self.reader.shapes

    @property
    def kinds(self) -> tuple[str, ...]:
        """As in `TensorSource`."""
        return ("fp32", *self.reader.moment_names)

    def rows(self, name: str, kind: str, first: int, end: int) -> Tensor:
        """As in `TensorSource`; reads only the ranges that hold these rows."""
        info = self.reader.parameters[name]
        tp_size = self.reader.layout["tp"] if info.tp_dim is not None else 1
        pieces, shard_start = [], 0
        for tp_rank in range(tp_size):
            num_rows, *rest = info.shard_shape(tp_rank, tp_size)
            start, stop = first, end
            if info.tp_dim == 0:  # shards hold different rows
                start, stop = (min(max(bound - shard_start, 0), num_rows) for bound in (first, end))
                shard_start += num_rows
            width = math.prod(rest)
            flat = self.reader.read_shard_range(
                name, kind, tp_rank, start * width, (stop - start) * width
            )
            pieces.append(flat.view(stop - start, *rest))
        return pieces[0] if tp_size == 1 else torch.cat(pieces, dim=info.tp_dim or 0)

    def facts(self) -> dict[str, Any]:
        """Counters, loss scale, the layout that saved it, and the weights of the mixture."""
        state, mixture = (read_content(self.folder, name) for name in RUN_FILES)
        facts = {"layout": self.reader.layout, **state["counters"]}
        if state.get("loss_scaler"):
            facts["loss_scaler"] = state["loss_scaler"]
        if mixture:
            facts["mixture"] = dict(
                zip(mixture["configuration"]["domains"], mixture["weights"], strict=True)
            )
        return facts


class WholeTensorSource:
    """A checkpoint whose tensors are read as a whole; the last one is kept for its other rows."""

    def __init__(self, reader: ParameterReader):
        self.folder = reader.folder
        self.shapes = reader.shapes
        self.kinds = ("fp32", *reader.moment_names)
        self._read = reader.read_logical
        self._last: tuple[tuple[str, str], Tensor] | None = None

    def rows(self, name: str, kind: str, first: int, end: int) -> Tensor:
        """As in `TensorSource`."""
        if self._last is None or self._last[0] != (name, kind):
            self._last = None  # two tensors must not be in memory at a time
            self._last = (name, kind), self._read(name, kind)
        return self._last[1][first:end]

    def facts(self) -> dict[str, Any]:
        """None: what there is beside the tensors is not in the form of ours."""
        return {}


def source_of(reader: ParameterReader) -> TensorSource:
    """The tensors of an open checkpoint, a few rows at a time if its files allow it."""
    if isinstance(reader, CheckpointReader):
        return CheckpointSource(reader.folder, reader)
    return WholeTensorSource(reader)


@dataclass(frozen=True)
class ModelFolderSource:
    """A folder for transformers: the weights alone, in the number format they are stored in."""

    folder: Path
    files: WeightFiles
    shapes: Mapping[str, tuple[int, ...]]
    weights: Mapping[str, Weight]
    """Name here -> tensors in the files."""
    kinds: tuple[str, ...] = ("fp32",)

    def rows(self, name: str, kind: str, first: int, end: int) -> Tensor:
        """As in `TensorSource`."""
        weight = self.weights[name]
        if weight.rows is None:
            return self.files.read_rows(weight.theirs[0], first, end).float()
        if weight.rows.is_stacked:
            return torch.stack([self.files.read(each).float() for each in weight.theirs[first:end]])
        pieces = weight.rows.pieces(first, end)
        return torch.cat(
            [self.files.read_rows(weight.theirs[part], *place).float() for part, *place in pieces]
        )

    def facts(self) -> dict[str, Any]:
        """The class of the model and the number format of its weights."""
        config = _model_configuration(self.folder)
        names = {"architectures": "architectures", "dtype": "dtype", "torch_dtype": "dtype"}
        return {name: config[key] for key, name in names.items() if key in config}


def open_source(path: Path, *, our_names: bool = False) -> TensorSource:
    """Opens what ``path`` names: a save folder (its latest checkpoint), a checkpoint, a model.

    Args:
        path: The folder.
        our_names: Gives the parameters of a model folder the names that our checkpoints use.

    Raises:
        CheckpointError: If it is none of these, or cannot be read.
        ConfigError: If ``our_names`` are asked for and the family is not known.
    """
    if not (path / "config.json").is_file():
        folder = find_source(path, None)
        return CheckpointSource(folder, CheckpointReader(folder))
    files = WeightFiles(path)
    weights = {name: Weight(name, (name,)) for name in sorted(files.names)}
    if our_names:
        weights = _our_names(_model_configuration(path), files.names)
    shapes = {name: _our_shape(weight, files) for name, weight in weights.items()}
    return ModelFolderSource(path, files, shapes, weights)


def row_blocks(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Cuts the rows of a tensor into ranges of about `BLOCK_ELEMENTS` elements."""
    width = max(1, math.prod(shape[1:]))
    step = max(1, BLOCK_ELEMENTS // width)
    num_rows = shape[0] if shape else 1
    for first in range(0, num_rows, step):
        yield first, min(first + step, num_rows)


def _our_names(config: dict[str, Any], found: set[str]) -> dict[str, Weight]:
    """{our name: tensors in the files}; tensors without a name of ours keep theirs."""
    family = family_of_config(config)
    try:
        settings = resolve_model_fields(family.read_config(config)).to_dict()
    except SchemaError as error:
        raise CheckpointError(f"config.json: {error}") from error
    result: dict[str, Weight] = {}
    for weight in family.weights_of(RunSettings(settings).shape(config["vocab_size"])):
        stored = family.stored_names(weight, found)
        if found.issuperset(stored):
            result[weight.ours] = replace(weight, theirs=stored)
    unknown = found - {name for weight in result.values() for name in weight.theirs}
    ours = {name: Weight(name, (name,)) for name in sorted(unknown) if not family.is_ignored(name)}
    return result | ours


def _our_shape(weight: Weight, files: WeightFiles) -> tuple[int, ...]:
    """Shape of a parameter that consists of tensors of theirs.

    Raises:
        CheckpointError: If they do not fit together.
    """
    shapes = [files.shape(name) for name in weight.theirs]
    ours = weight.our_shape(shapes[0])
    for part, shape in enumerate(shapes):
        wanted = weight.their_shape(part, ours)
        if shape != wanted:
            where = f"{files.folder}: {weight.theirs[part]}"
            raise CheckpointError(f"{where} has shape {shape}, config.json says {wanted}")
    return ours


def _model_configuration(folder: Path) -> dict[str, Any]:
    return read_json(
        folder / "config.json",
        fields({}, {"vocab_size": integer(1, 1 << 31)}),
        error=CheckpointError,
        what="model configuration",
    )
