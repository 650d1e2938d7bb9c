"""What the files of a checkpoint must contain; used by every reader and by `verify`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

from megatron.checkpoint.runs import Run, rank_number, run_of
from megatron.engine.state import TrainState
from megatron.neox_arguments.resolved import in_current_form
from megatron.neox_arguments.run_config import SCHEMA_VERSION
from megatron.neox_arguments.sections.model import RopeScaling
from megatron.sizing.model_shape import ModelShape
from odm.held_out import check_record
from odm.json_data import (
    Check,
    SchemaError,
    anything,
    boolean,
    fields,
    integer,
    list_of,
    mapping_of,
    number,
    one_of,
    optional,
    refuse,
    text,
)
from odm.saved_state import check_stored_state

__all__ = [
    "CONFIGS",
    "FORMAT_VERSION",
    "READ_VERSIONS",
    "RUN_FILES",
    "ParameterInfo",
    "check_index",
    "check_mixture",
    "check_random_state",
    "check_resolved",
    "check_state",
]

FORMAT_VERSION = 3
"""What is written. Versions 1, which lists every fragment on its own, and 2, which has one checksum
per file of tensors, are read as well."""
READ_VERSIONS = (1, 2, 3)
CONFIGS = "configs"
"""Folder of the configuration files; older checkpoints have no checksums of them."""
RUN_FILES = ("state.json", "mixture.json")
"""Files of the run as a whole, which every checkpoint has."""

_MAX_RANKS = 1 << 24
_MAX_TENSOR_RANKS = 1 << 16
_MAX_EXTENT = 1 << 40
_FLOAT_BYTES = 4
_WORDS = 626
"""Words of a Mersenne twister as `accelerator.rng_state` stores it: 624 and two more."""


@dataclasses.dataclass(frozen=True)
class ParameterInfo:
    """Facts about a parameter that are the same on every rank."""

    shape: tuple[int, ...]
    """Logical shape: unsharded, without vocabulary padding."""
    tp_dim: int | None
    """Dimension that tensor parallelism cuts; None when replicated."""
    extent: int
    """Size of that dimension over all saved shards, vocabulary padding included."""

    def shard_shape(self, tp_rank: int, tp_size: int) -> tuple[int, ...]:
        """Shape of a saved shard, without padding."""
        shape = list(self.shape)
        if self.tp_dim is not None:
            size = self.extent // tp_size
            shape[self.tp_dim] = max(0, min(size, shape[self.tp_dim] - size * tp_rank))
        return tuple(shape)


_FILE_NAME = text(
    rf"(?!index\.json)(?!{CONFIGS}/\.{{1,2}}$)(?!\.)({CONFIGS}/)?[^/\x00-\x1f]+",
    must="the name of a file of the checkpoint",
    as_file=True,
)
_CRC32 = integer(0, 2**32 - 1)
_COUNT = integer(0, _MAX_EXTENT)
_RANK = integer(0, _MAX_RANKS)
_INDEX = fields(
    {
        "layout": fields(
            {
                "dp": integer(1, _MAX_RANKS),
                "tp": integer(1, _MAX_TENSOR_RANKS),
                "pp": integer(1, _MAX_RANKS),
            }
        ),
        "moments": list_of(text(r"(?!fp32$)\w+", must="the name of a moment")),
        "files": mapping_of(
            fields({"size": integer(0)}, {"crc32": _CRC32, "header_crc32": _CRC32}), _FILE_NAME
        ),
        "parameters": mapping_of(
            fields(
                {
                    "shape": list_of(integer(1, _MAX_EXTENT)),
                    "tp_dim": optional(integer(0, 7)),
                    "extent": integer(1, _MAX_EXTENT),
                    "fragments": list_of(anything),
                }
            ),
            text(r"[^|\x00-\x1f]+", must="the name of a parameter"),
        ),
    }
)

_COUNTERS = {name: integer(0) for name in TrainState().state_dict()}
_STATE = fields(
    {"counters": fields(_COUNTERS)},
    {
        "loss_scaler": fields(
            {},
            {
                "cur_scale": number(1e-300),
                "cur_iter": integer(0),
                "last_overflow_iter": integer(-(2**62)),
                "cur_hysteresis": integer(-(2**62)),
            },
            closed=True,
        ),
        "config_files": list_of(text(must="the name of a file", as_file=True)),
        "samples_per_epoch": mapping_of(integer(0)),
    },
)
_SECTION = mapping_of(anything)
_OF_TYPE = {int: integer(0, 1 << 19), float: number(), bool: boolean}


def _of_type(kind: Any) -> Check:
    """The check of a field with this type, or with this type or null."""
    kind = next((part for part in get_args(kind) if part in _OF_TYPE), kind)
    if get_origin(kind) is Literal:
        return one_of(*get_args(kind))
    return _OF_TYPE.get(kind, text())


_ROPE_SCALING = {name: _of_type(kind) for name, kind in get_type_hints(RopeScaling).items()}
_ROPE_SCALING |= {"factor": number(1), "original_max_position_embeddings": integer(1)}
_NETWORK: dict[str, Check] = {
    **{name: _of_type(kind) for name, kind in get_type_hints(ModelShape).items()},
    "norm_epsilon": number(0),
    "num_layers": integer(1, 10_000),
    "max_position_embeddings": integer(1, 1 << 31),
    "rotary_emb_base": number(0),
    "soft_prompt": anything,
    "rope_scaling": fields(
        {name: _ROPE_SCALING[name] for name in ("rope_type", "factor")},
        {name: optional(check) for name, check in _ROPE_SCALING.items()},
        closed=True,
    ),
    "rpe_max_distance": integer(0, 1 << 31),
    "attention_reach": list_of(optional(list_of(integer(0, 1 << 31), length=2))),
}
"""Types of the fields that decide the network."""
_READ_FIELDS = fields(
    {"model": fields({}, {name: optional(check) for name, check in _NETWORK.items()})},
    {
        "optimizer": fields({}, {"learning_rate": number(0)}),
        "schedule": fields(
            {},
            {
                "warmup_iters": number(0),
                "decay_iters": integer(0),
                "min_lr": number(),
                "decay_style": text(),
            },
        ),
        "data": fields(
            {},
            {
                "tokenizer_type": optional(text()),
                "vocab_file": optional(text(as_file=True)),
                "merge_file": optional(text(as_file=True)),
                "tokenizer_adds_special_tokens": optional(boolean),
            },
        ),
        "logging": fields({}, {"log_dir": optional(text(as_file=True))}),
    },
)


def check_index(index: Any, where: str) -> None:
    """Checks an index whose version and checksum are right; see `odm.json_data.Check`."""
    _INDEX(index, where)
    files, filled = index["files"], _Filled(index["files"])
    for name in RUN_FILES:
        if name not in files:
            raise SchemaError(f"files: does not list {name}")
    for name, facts in files.items():
        if "crc32" not in facts and "header_crc32" not in facts:
            raise SchemaError(f"lacks files.{name}.crc32")
    for name, facts in index["parameters"].items():
        place = f"parameters.{name}"
        _check_shape(facts, index["layout"]["tp"], place)
        _check_fragments(facts, index["layout"]["tp"], filled, place)
    for name, elements in filled.items():
        if _FLOAT_BYTES * elements > files[name]["size"]:
            raise SchemaError(f"files.{name}.size: is too small for {elements} float32 numbers")


def _check_shape(facts: Mapping[str, Any], tp_size: int, where: str) -> None:
    shape, tp_dim, extent = facts["shape"], facts["tp_dim"], facts["extent"]
    if not 1 <= len(shape) <= 8 or math.prod(shape) > _MAX_EXTENT:
        refuse(f"{where}.shape", f"1 to 8 sizes whose product is at most {_MAX_EXTENT}", shape)
    if tp_dim is not None and tp_dim >= len(shape):
        refuse(f"{where}.tp_dim", f"below the {len(shape)} dimensions", tp_dim)
    if extent < shape[tp_dim or 0] or (tp_dim is not None and extent % tp_size):
        refuse(f"{where}.extent", f"a multiple of {tp_size} from {shape[tp_dim or 0]} on", extent)


def _check_fragments(facts: Mapping[str, Any], tp_size: int, filled: _Filled, where: str) -> None:
    """Checks that each element of a shard is in one fragment only; adds lengths to ``filled``."""
    info = ParameterInfo(tuple(facts["shape"]), facts["tp_dim"], facts["extent"])
    num_shards = 1 if info.tp_dim is None else tp_size
    shards: dict[int, list[tuple[int, int]]] = {}
    for place, fragment in enumerate(facts["fragments"]):
        at = f"{where}.fragments[{place}]"
        _check_entry(fragment, num_shards, filled, at)
        run = run_of(fragment)
        filled.add(run, at)
        shards.setdefault(run.tp_rank, []).append((run.offset, run.length * run.count))
    for tp_rank, pieces in shards.items():
        end = math.prod(info.shard_shape(tp_rank, num_shards))
        _check_tiling([*sorted(pieces), (end, 0)], f"{where}.fragments: tensor rank {tp_rank}")
    total = sum(length for pieces in shards.values() for _, length in pieces)
    if total != math.prod(info.shape):
        refuse(f"{where}.fragments", f"{math.prod(info.shape)} elements together", total)


def _check_entry(fragment: Any, num_shards: int, filled: _Filled, at: str) -> None:
    """Checks the types of one entry, see `megatron.checkpoint.runs`."""
    is_list = isinstance(fragment, (list, tuple))
    if not is_list or len(fragment) not in (4, 6):
        refuse(at, "[file, tensor rank, offset, length], or six numbers", fragment)
    numbers: tuple[Check, ...] = (integer(0, num_shards - 1), _COUNT, _COUNT)
    first = 1
    if len(fragment) == 6:
        numbers = (_RANK, integer(1, _MAX_RANKS), *numbers, integer(2, _MAX_RANKS))
        first = 0
    elif not isinstance(fragment[0], str) or fragment[0] not in filled or "/" in fragment[0]:
        refuse(f"{at}[0]", "a file that the index lists", fragment[0])
    for number_of, (check, value) in enumerate(zip(numbers, fragment[first:], strict=True), first):
        check(value, f"{at}[{number_of}]")


class _Filled:
    """Counts the elements that the fragments say each file has."""

    def __init__(self, files: Iterable[str]):
        self._by_name = dict.fromkeys(files, 0)
        self._numbers = {rank_number(name): name for name in self._by_name}
        last = max(self._numbers, default=0)
        self._by_number = np.zeros(last + 1, dtype=np.int64)
        self._is_there = np.zeros(last + 1, dtype=bool)
        self._is_there[[number for number in self._numbers if number >= 0]] = True

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def add(self, run: Run, at: str) -> None:
        """Adds the fragments of a run, whose files must be listed."""
        if run.count == 1:
            self._by_name[run.file] += run.length
            return
        stop = run.number + run.step * (run.count - 1) + 1
        place = slice(run.number, stop, run.step)
        if stop > len(self._by_number) or not self._is_there[place].all():
            refuse(at, "fragments in files that the index lists", [run.file, run.step, run.count])
        self._by_number[place] += run.length

    def items(self) -> Iterator[tuple[str, int]]:
        """(name, elements) of every file."""
        for name, elements in self._by_name.items():
            number = rank_number(name)
            yield name, elements + (int(self._by_number[number]) if number >= 0 else 0)


def _check_tiling(pieces: Iterable[tuple[int, int]], where: str) -> None:
    position = 0
    for offset, length in pieces:
        if offset != position:
            what = "are missing" if offset > position else "overlap"
            raise SchemaError(f"{where}: elements {what} between {position} and {offset}")
        position += length


def check_state(state: Any, where: str) -> None:
    """Checks the content of ``state.json``; see `odm.json_data.Check`."""
    _STATE(state, where)
    counters = state["counters"]
    for name in ("applied_steps", "consecutive_skips"):
        if counters[name] > counters["step"]:
            refuse(f"counters.{name}", f"at most the step, {counters['step']}", counters[name])


def check_mixture(mixture: Any, where: str) -> None:
    """Checks the content of ``mixture.json``: a state, or null to start from zero."""
    if mixture is not None:
        check_stored_state(mixture)
        fields({}, {"held_out": check_record})(mixture, "")


def check_resolved(values: Any, where: str) -> None:
    """Checks the content of ``resolved.json``: without the network nothing would be compared."""
    _SECTION(values, where)
    integer(1, SCHEMA_VERSION)(values.get("version", 1), "version")
    for name, section in values.items():
        if name not in ("version", "notes"):
            _SECTION(section, name)
    network = ("model",) if "version" in values else ("model", "derived")
    for name in network:
        if not values.get(name):
            raise SchemaError(f"lacks {name}, the network that the weights belong to")
    _READ_FIELDS(in_current_form(values), where)


def check_random_state(state: Mapping[str, Tensor]) -> None:
    """Checks the random states of a rank, see `accelerator.rng_state`.

    Raises:
        SchemaError: If a tensor is missing or wrong; names it.
    """
    words = {name: (torch.int64, (_WORDS,)) for name in ("python", "numpy")}
    known = {**words, "numpy_gauss": (torch.float64, (1,))}
    missing = sorted({*known, "python_gauss", "torch"} - state.keys())
    if missing:
        raise SchemaError(f"lacks {', '.join(missing)}")
    for name, (dtype, shape) in known.items():
        if state[name].dtype != dtype or tuple(state[name].shape) != shape:
            refuse(name, f"{dtype} of shape {shape}", (state[name].dtype, state[name].shape))
    gauss = state["python_gauss"]
    if gauss.dtype != torch.float64 or tuple(gauss.shape) not in ((0,), (1,)):
        refuse("python_gauss", "at most one float64", (gauss.dtype, gauss.shape))
    ends = {"python": (624, 3, 3), "numpy": (624, 0, 1)}  # position, and version or a flag
    for name, (last_position, low, high) in ends.items():
        *numbers, position, last = state[name].tolist()
        if not all(0 <= n < 2**32 for n in numbers):
            refuse(name, "numbers of 32 bits", "others")
        if not (0 <= position <= last_position and low <= last <= high):
            refuse(name, "a position and a version that Python knows", (position, last))
    for name in ("torch", "device"):
        if name in state and (state[name].dtype != torch.uint8 or state[name].dim() != 1):
            refuse(name, "bytes", (state[name].dtype, state[name].shape))
    try:
        torch.Generator().set_state(state["torch"])
    except RuntimeError as error:
        raise SchemaError(f"torch: is not a state of torch's generator ({error})") from None
