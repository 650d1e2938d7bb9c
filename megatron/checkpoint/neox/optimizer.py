"""Master weights and moments of DeepSpeed's optimizers, by GPT-NeoX's names.

With ZeRO 1 and 2 each data-parallel rank saves one flat partition per parameter group; the names
and shapes in it, in order, are ``param_shapes`` of the file with counters (deepspeed/utils/
zero_to_fp32.py reads them so). ZeRO 3 cuts each parameter instead: a partition has a piece of each,
one after the other, and a group may be several. Without ZeRO the file with counters has the
optimizer's own state without names; the groups are GPT-NeoX's: all that decays, then norms and
biases.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron.checkpoint.neox.folder import NeoxFolder, is_shape, param_shapes
from megatron.checkpoint.neox.torch_file import is_dense
from megatron.errors import CheckpointError
from odm.wording import counted

__all__ = ["OptimizerStates", "no_states"]

_NAME = re.compile(r"(?:(?:sequential\.)?(\d{1,6})|tied_modules\.embed)\.(.+)")
_NO_DECAY = re.compile(r"(.*norm\..*|(.*\.)?bias)")

Sources = Mapping[str, tuple[int, tuple[str, ...]]]
"""Our name of a parameter -> its layer and GPT-NeoX's names in it."""


class _Unknown(Exception):
    """The states are sound, but of a form that is not read."""


@dataclass(frozen=True)
class _Form:
    """Where a file has the states, and what else to do if it is damaged."""

    weights: str
    base: str
    advice: str


_ZERO_1 = _Form(
    weights="single_partition_of_fp32_groups",
    base="base_optimizer_state",
    advice=", or set no_load_optim: true, which starts the optimizer from zero",
)
_ZERO_3 = _Form(weights="fp32_flat_groups", base="optimizer_state_dict", advice="")


@dataclass(frozen=True)
class _Piece:
    """Where a part of a parameter is: a range of flat tensors that follow each other."""

    shape: tuple[int, ...]
    offset: int
    flat: Mapping[str, Sequence[Tensor]]
    """Kind -> partitions."""


@dataclass(frozen=True)
class OptimizerStates:
    """The states of all model ranks; tensors stay in the files until they are read."""

    problem: str | None = None
    """Why there are none; None if there are."""
    moment_names: tuple[str, ...] = ()
    has_weights: bool = False
    """Whether there are float32 master weights."""
    _pieces: Mapping[tuple[int, str, int], _Piece] = field(default_factory=dict)
    """(layer, GPT-NeoX's name, model-parallel part) -> where it is."""

    @classmethod
    def find(cls, files: NeoxFolder, sources: Sources) -> OptimizerStates:
        """Opens the files of a checkpoint that belong to the optimizer.

        Raises:
            CheckpointError: If one of them is missing, damaged or of another checkpoint.
        """
        try:
            return _find(files, sources)
        except _Unknown as error:
            return no_states(str(error))

    def read(self, layer: int, name: str, part: int, kind: str) -> Tensor:
        """A part of a parameter (``fp32``) or of a moment of it, in the shape it has there."""
        piece = self._pieces[layer, name, part]
        length = math.prod(piece.shape)
        return _range(piece.flat[kind], piece.offset, length).view(piece.shape)


def no_states(problem: str) -> OptimizerStates:
    """The states of a checkpoint that has none that could be read."""
    return OptimizerStates(problem)


def _find(files: NeoxFolder, sources: Sources) -> OptimizerStates:
    pieces: dict[tuple[int, str, int], _Piece] = {}
    for rank in sorted(files.rank_files):
        path = files.rank_files[rank]
        for name, piece in _pieces_of_rank(files, rank):
            match = _NAME.fullmatch(name)
            if match is None:
                raise _Unknown(f"{path.name} has a parameter {name!r}")
            pieces.setdefault((int(match[1] or 0), match[2], rank % files.num_parts), piece)
    if not pieces:
        raise _Unknown("the folder has no mp_rank_<RR>_model_states.pt")
    kinds = {tuple(piece.flat) for piece in pieces.values()}
    if len(kinds) > 1:
        raise CheckpointError(
            f"{files.folder}: the files with optimizer states have different moments; they are of "
            f"different checkpoints; copy them again{_form_of(files).advice}"
        )
    for layer, names in sources.values():
        for name in names:
            for part, tensors in enumerate(files.parts_of(layer)):
                found = pieces.get((layer, name, part))
                if found is None:
                    raise _Unknown(f"{name} of layer {layer} has none in part {part}")
                if found.shape != tuple(tensors[name].shape):
                    raise CheckpointError(
                        f"{files.file_of(layer, part)}: {name} has the shape "
                        f"{tuple(tensors[name].shape)}, the optimizer's states say {found.shape}; "
                        "the files are of different checkpoints; copy them again"
                        f"{_form_of(files).advice}"
                    )
    (kind,) = kinds
    moments = tuple(name for name in kind if name != "fp32")
    return OptimizerStates(None, moments, "fp32" in kind, pieces)


def _pieces_of_rank(files: NeoxFolder, rank: int) -> Iterator[tuple[str, _Piece]]:
    """GPT-NeoX's full name of each parameter of a model rank, and where it is."""
    content, path = files.content_of(rank), files.rank_files[rank]
    if not files.optimizer_files and not files.is_partitioned:
        yield from _without_zero(files, rank)
        return
    shapes, form = param_shapes(content), _form_of(files)
    if shapes is None:
        raise _Unknown(f"{path.name} has no param_shapes, as in files of old versions of DeepSpeed")
    found = files.optimizer_files.get(rank, {})
    for number in range(max(found, default=0) + 1):
        if number not in found:
            name = f"zero_pp_rank_{number}_mp_rank_{rank:02d}_optim_states.pt"
            raise CheckpointError(f"{files.folder / name}: is missing; copy it too{form.advice}")
    partitions = [_partition(files.read(found[n]), found[n], form) for n in sorted(found)]
    for data_rank, partition in enumerate(partitions):
        _check_count(partition, len(partitions), found[data_rank], form)
    for number, group in enumerate(shapes):
        flat = _flat_group(
            [_group(p, number, found[n], form) for n, p in enumerate(partitions)], found[0], form
        )
        if form is _ZERO_3:
            yield from _cut_each(group, flat, found[0])
        else:
            yield from _cut(group, flat, found[0], alignment=2 * len(partitions))


def _form_of(files: NeoxFolder) -> _Form:
    return _ZERO_3 if files.is_partitioned else _ZERO_1


def _partition(content: Any, path: Path, form: _Form) -> Mapping[str, Any]:
    """What one data-parallel rank saved."""
    states = content.get("optimizer_state_dict") if isinstance(content, Mapping) else None
    if not isinstance(states, Mapping):
        raise CheckpointError(f"{path}: has no optimizer_state_dict; copy it again{form.advice}")
    if form.weights not in states or form.base not in states:
        raise _Unknown(f"{path.name} is of a version of ZeRO that is not known")
    return states


def _check_count(partition: Mapping[str, Any], num_files: int, path: Path, form: _Form) -> None:
    count = partition.get("partition_count", num_files)
    counts = count if isinstance(count, (list, tuple)) else [count]
    wrong = [number for number in counts if type(number) is int and number != num_files]
    if wrong:
        raise CheckpointError(
            f"{path}: is one of {counted(max(wrong), 'partition')}, but the folder has "
            f"{num_files}; copy them again{form.advice}"
        )


def _group(states: Mapping[str, Any], number: int, path: Path, form: _Form) -> dict[str, Tensor]:
    """Kind -> the flat partition of a parameter group."""
    base = states[form.base]
    moments = base.get("state") if isinstance(base, Mapping) else base
    try:
        weights = states[form.weights][number]
        kinds = moments[number] if moments else {}
        named = {"fp32": weights, **_moments(kinds, weights)}
    except (LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: has no states of parameter group {number}; copy it again{form.advice}"
        ) from error
    return named


def _moments(kinds: Mapping[str, Any], weights: Tensor) -> dict[str, Tensor]:
    """The tensors of a state that belong to elements; the step counter does not."""
    return {
        name: value
        for name, value in sorted(kinds.items())
        if isinstance(value, Tensor) and value.dim() == weights.dim() and value.dim() > 0
    }


def _flat_group(
    partitions: Sequence[Mapping[str, Tensor]], path: Path, form: _Form
) -> dict[str, list[Tensor]]:
    """Kind -> the partitions of all data-parallel ranks, one after the other."""
    if any(partition.keys() != partitions[0].keys() for partition in partitions):
        raise CheckpointError(
            f"{path}: has other moments than the files of the other ranks; they are of different "
            f"checkpoints; copy them again{form.advice}"
        )
    return {kind: [partition[kind] for partition in partitions] for kind in partitions[0]}


def _check_flat(flat: Mapping[str, Sequence[Tensor]], path: Path, form: _Form) -> None:
    for kind, pieces in flat.items():
        if not all(is_dense(t) and t.is_floating_point() and t.dim() == 1 for t in pieces):
            raise CheckpointError(f"{path}: {kind} is no flat tensor; copy it again{form.advice}")


def _cut_each(
    group: Mapping[str, Any], flat: Mapping[str, Sequence[Tensor]], path: Path
) -> Iterator[tuple[str, _Piece]]:
    """Gives each parameter of a group of ZeRO 3 a range of each partition."""
    _check_flat(flat, path, _ZERO_3)
    offset = 0
    for name, shape in group.items():
        length = math.ceil(math.prod(shape) / len(flat["fp32"]))
        pieces = {kind: [t[offset : offset + length] for t in flat[kind]] for kind in flat}
        yield name, _Piece(tuple(shape), 0, pieces)
        offset += length
    for kind, partitions in flat.items():
        for tensor in partitions:
            if tensor.numel() != offset:
                raise CheckpointError(
                    f"{path}: {kind} has partitions of {tensor.numel()} elements, its parameters "
                    f"give each {offset}; the files are of different checkpoints; copy them again"
                )


def _cut(
    group: Mapping[str, Any], flat: Mapping[str, Sequence[Tensor]], path: Path, *, alignment: int
) -> Iterator[tuple[str, _Piece]]:
    """Gives each parameter of a group its range; the end may be padding."""
    _check_flat(flat, path, _ZERO_1)
    offset = 0
    for name, shape in group.items():
        if not isinstance(name, str) or not is_shape(shape):
            raise CheckpointError(f"{path}: {name!r} is no parameter with a shape")
        yield name, _Piece(tuple(shape), offset, flat)
        offset += math.prod(shape)
    wanted = math.ceil(offset / alignment)
    for kind, pieces in flat.items():
        found = sum(tensor.numel() for tensor in pieces)
        if found < offset or math.ceil(found / alignment) != wanted:
            raise CheckpointError(
                f"{path}: {kind} has {found} elements, its parameters {offset}; the files are of "
                f"different checkpoints; copy them again{_ZERO_1.advice}"
            )


def _without_zero(files: NeoxFolder, rank: int) -> Iterator[tuple[str, _Piece]]:
    """The states inside a file with counters: one per parameter, or flat per group (fp16)."""
    path, saved = files.rank_files[rank], files.content_of(rank).get("optimizer")
    if not isinstance(saved, Mapping):
        raise _Unknown("the folder has no files with them")
    if len(files.rank_files) != files.num_parts:
        raise _Unknown("they were saved by pipeline stages without ZeRO, which leaves out names")
    flat = saved.get("fp32_groups_flat")
    torch_state = saved.get("optimizer_state_dict", saved)
    groups, states = (
        torch_state.get(key) if isinstance(torch_state, Mapping) else None
        for key in ("param_groups", "state")
    )
    if not isinstance(groups, (list, tuple)) or not isinstance(states, Mapping):
        raise _Unknown(f"those in {path.name} are of a form that is not known")
    named = _named_groups(files, rank % files.num_parts, len(groups))
    try:
        numbers = [list(group["params"]) for group in groups]
        if flat is not None:
            for (number,), names, weights in zip(numbers, named, flat, strict=True):
                kinds = {"fp32": [weights]}
                kinds.update({k: [t] for k, t in _moments(states.get(number, {}), weights).items()})
                yield from _cut(names, kinds, path, alignment=1)
            return
        for group, names in zip(numbers, named, strict=True):
            for number, (name, shape) in zip(group, names.items(), strict=True):
                moments = _per_parameter(states.get(number, {}), shape)
                yield name, _Piece(shape, 0, moments)
    except CheckpointError:  # a ValueError too
        raise
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise _Unknown(f"those in {path.name} do not fit its parameters") from error


def _per_parameter(state: Mapping[str, Any], shape: tuple[int, ...]) -> dict[str, list[Tensor]]:
    moments = {
        name: [value.flatten()]
        for name, value in sorted(state.items())
        if is_dense(value) and tuple(value.shape) == shape
    }
    if not moments and state:
        raise ValueError("a state of another shape")
    return moments


def _named_groups(files: NeoxFolder, part: int, count: int) -> list[dict[str, tuple[int, ...]]]:
    """Names and shapes of the parameters of a part in the optimizer's groups, in order."""
    everything = {
        f"{layer}.{name}": tuple(tensor.shape)
        for layer in files.layers
        for name, tensor in files.parts_of(layer)[part].items()
        if "rotary_emb." not in name and "inv_freq" not in name and "alibi" not in name
    }
    if count == 1:  # weight_decay: 0
        return [everything]
    groups: list[dict[str, tuple[int, ...]]] = [{}, {}]
    for name, shape in everything.items():
        is_kept = _NO_DECAY.fullmatch(name.partition(".")[2]) is not None
        groups[is_kept][name] = shape
    return groups


def _range(pieces: Iterable[Tensor], offset: int, length: int) -> Tensor:
    """Elements [offset, offset + length) of tensors that follow each other, float32."""
    found, start = [], 0
    for piece in pieces:
        first, last = max(offset - start, 0), min(offset + length - start, piece.numel())
        if first < last:
            found.append(piece[first:last].float())
        start += piece.numel()
    return found[0] if len(found) == 1 else torch.cat(found)
