"""Counters, learning-rate schedule and loss scale in a GPT-NeoX checkpoint, in the form of ours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron.checkpoint.neox.folder import NeoxFolder
from megatron.checkpoint.neox.torch_file import Unread
from megatron.engine.state import TrainState
from megatron.errors import CheckpointError
from megatron.sizing.model_shape import ModelShape

__all__ = ["neox_run_state", "neox_schedule", "network_of_args_problem"]

_MAX_COUNT = 1 << 53
_COMPARED = ("num_layers", "hidden_size", "num_attention_heads")
_SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def neox_run_state(folder: Path, *, seq_length: int = 0) -> dict[str, Any]:
    """The content of a ``state.json`` for a checkpoint of GPT-NeoX.

    Args:
        folder: The ``global_step<N>`` folder. Its name is the iteration if it has no file with
            counters, as in weights that were copied alone.
        seq_length: Tokens per sample, to count them.

    Raises:
        CheckpointError: If a counter is wrong.
    """
    files = NeoxFolder(folder)
    content = files.counters()
    where = str(files.rank_files[min(files.rank_files)]) if files.rank_files else str(folder)
    named = int(folder.name.removeprefix("global_step"))
    old_name = _count(content, "total_iters", named, where)
    step = _count(content, "iteration", old_name, where)
    skipped = min(step, _count(content, "skipped_steps", 0, where))
    samples = _count(content, "global_samples", 0, where)
    state = TrainState(
        step=step,
        applied_steps=step - skipped,
        consumed_samples=samples,
        consumed_tokens=samples * seq_length,
    )
    return {"counters": state.state_dict(), "loss_scaler": _loss_scale(files)}


def neox_schedule(folder: Path) -> dict[str, Any] | None:
    """The learning-rate schedule, in the sections of ``resolved.json``; None if it is not saved."""
    saved = NeoxFolder(folder).counters().get("lr_scheduler")
    if not isinstance(saved, Mapping):
        return None
    names = ("start_lr", "min_lr", "warmup_iter", "end_iter")
    numbers: dict[str, Any] = {name: saved.get(name) for name in names}
    style = saved.get("decay_style")
    if not isinstance(style, str) or not all(map(_is_number, numbers.values())):
        return None
    return {
        "optimizer": {"learning_rate": float(numbers["start_lr"])},
        "schedule": {
            "min_lr": float(numbers["min_lr"]),
            "warmup_iters": float(numbers["warmup_iter"]),
            "decay_iters": int(numbers["end_iter"]),
            "decay_style": style.lower(),
        },
    }


def network_of_args_problem(folder: Path, network: ModelShape) -> str | None:
    """A message if the checkpoint was saved by another network, as far as its counters tell."""
    files = NeoxFolder(folder)
    args = files.counters().get("args")
    args = args.state if isinstance(args, Unread) else args  # a Namespace in old files
    if not isinstance(args, Mapping):
        return None
    for name in _COMPARED:
        value, wanted = args.get(name), getattr(network, name)
        if type(value) is int and value != wanted:
            path = files.rank_files[min(files.rank_files)]
            return (
                f"{path}: {name} is {value}, this run has {wanted}, which is another network; use "
                "the model's own configuration"
            )
    return None


def _count(content: Mapping[str, Any], name: str, default: int, where: str) -> int:
    value = content.get(name)
    if value is None:
        return default
    if type(value) is not int or not 0 <= value < _MAX_COUNT:
        raise CheckpointError(f"{where}: {name} must be a whole number from 0 on, got {value!r}")
    return value


def _loss_scale(files: NeoxFolder) -> dict[str, float]:
    """The dynamic loss scale of fp16, wherever DeepSpeed left it; empty if it is not there."""
    known: Any = files.counters().get("optimizer") if files.rank_files else None
    for ranks in list(files.optimizer_files.values())[:1]:
        content = files.read(ranks[min(ranks)])
        states = content.get("optimizer_state_dict") if isinstance(content, Mapping) else None
        scaler = states.get("loss_scaler") if isinstance(states, Mapping) else None
        known = scaler.state if isinstance(scaler, Unread) else None
    if not isinstance(known, Mapping) or not _is_number(known.get("cur_scale")):
        return {}
    found = {name: known[name] for name in _SCALE if type(known.get(name)) in (int, float)}
    return found if known["cur_scale"] > 0 else {}


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) < _MAX_COUNT
