"""How many processes there are and how batches are dealt to them."""

from __future__ import annotations

import dataclasses
import os

from odm.wording import counted

from .. import hostfile
from ..bounds import MOST_PROCESSES
from ..errors import ConfigError, shown
from ..fields import field_table
from ..purpose import Purpose
from ..sections import Batch
from .draft import Draft

_COUNTS = ("num_gpus", "num_nodes", "world_size", "global_num_gpus", "master_addr")


def resolve_world_size(draft: Draft, world_size: int | None) -> int:
    """Returns the number of processes of the run.

    The first of: the argument, WORLD_SIZE in the environment, `global_num_gpus`, the hostfile with
    its filters, `num_gpus`, `world_size`, 1.
    """
    if world_size is not None:
        if world_size <= MOST_PROCESSES:
            return world_size
        draft.refuse("world_size", f"must be at most {MOST_PROCESSES}, got {shown(world_size)}")
        draft.knows_processes = False
        return 1
    text = os.environ.get("WORLD_SIZE", "")
    if text.isdecimal() and len(text) < 9 and 0 < int(text) <= MOST_PROCESSES:
        return int(text)
    if draft["global_num_gpus"]:
        return min(int(draft["global_num_gpus"]), MOST_PROCESSES)  # more is an issue already
    try:
        slots = _slots_of_hostfile(draft)
    except ConfigError as error:
        draft.issues.add_error(error)
        draft.knows_processes = False
        return 1
    if slots is not None:
        return slots
    return min(int(draft["num_gpus"] or draft["world_size"] or 1), MOST_PROCESSES)


def _slots_of_hostfile(draft: Draft) -> int | None:
    """Counts slots of the hostfile or, without one, of `include`; None when neither says."""
    hosts = hostfile.hostfile_slots(draft.__getitem__, os.environ)
    if hosts is not None:
        return sum(len(slots) for slots in hosts.values())
    path = hostfile.missing_hostfile(draft.__getitem__, os.environ)
    if path is not None:
        draft.notes.append(f"there is no hostfile {path}; the run uses this machine alone")
    if draft["include"]:
        listed = hostfile.parse_filter(draft["include"], "include", hostfile.this_machines_names())
        counts = [len(slots) for slots in listed.values() if slots is not None]
        return min(sum(counts), draft["num_gpus"] or MOST_PROCESSES) or None
    return None


def resolve_topology(draft: Draft, world_size: int) -> dict[str, int]:
    """Returns the degrees of parallelism as fields of `Layout`, with their product."""
    model = max(draft["model_parallel_size"] or 1, 1)
    pipe = max(draft["pipe_parallel_size"] or 1, 1)
    data = max(world_size // (model * pipe), 1)
    if draft.knows_processes and (world_size < 1 or world_size % (model * pipe)):
        draft.issues.add(
            "model_parallel_size",
            f"world size {world_size} = data parallel x model_parallel_size {model} x "
            f"pipe_parallel_size {pipe} has no whole solution; start a multiple of {model * pipe} "
            f"processes, or lower one of the two sizes",
        )
    sizes = {"data_parallel_size": data, "model_parallel_size": model, "pipe_parallel_size": pipe}
    return {"world_size": world_size, **sizes}


def resolve_batch(draft: Draft, data_parallel: int) -> Batch:
    """Solves train = micro * accumulation * data-parallel size for what is not set."""
    train: int | None = draft["train_batch_size"]
    micro: int | None = draft["train_micro_batch_size_per_gpu"]
    steps: int | None = draft["gradient_accumulation_steps"]
    is_missing = train is None and micro is None
    if is_missing:
        problem = "and train_micro_batch_size_per_gpu are both missing; set one of them"
        draft.refuse("train_batch_size", problem)
    if is_missing or any(value is not None and value < 1 for value in (train, micro, steps)):
        return _batch(1, 1, data_parallel)  # or a bound is broken
    if train is None:
        assert micro is not None
        return _batch(micro, steps or 1, data_parallel)
    if micro is None:
        steps = steps or 1
        micro = max(train // (steps * data_parallel), 1)
    elif steps is None:
        steps = max(train // (micro * data_parallel), 1)
    if draft.knows_processes and micro * steps * data_parallel != train:
        _add_batch_issue(draft, train, micro, steps, data_parallel)
        if draft.purpose is Purpose.READING:
            # `eval_iters` counts batches of the training, whatever the number of processes is now
            return dataclasses.replace(_batch(micro, steps, data_parallel), train_batch_size=train)
    return _batch(micro, steps, data_parallel)


def _batch(micro: int, steps: int, data_parallel: int) -> Batch:
    return Batch(
        train_batch_size=micro * steps * data_parallel,
        micro_batch_size=micro,
        gradient_accumulation_steps=steps,
    )


def _add_batch_issue(draft: Draft, train: int, micro: int, steps: int, data_parallel: int) -> None:
    """Prints the equation with its numbers and two ways to fix it."""
    product = micro * steps * data_parallel
    first = f"train_batch_size: {product}"
    if draft["gradient_accumulation_steps"] is not None and train % (micro * data_parallel) == 0:
        second = f"gradient_accumulation_steps: {train // (micro * data_parallel)}"
    elif train % (steps * data_parallel) == 0:
        second = f"train_micro_batch_size_per_gpu: {train // (steps * data_parallel)}"
    else:
        divisor = max(d for d in range(1, data_parallel + 1) if train % d == 0)
        second = (
            f"start {counted(divisor, 'data-parallel process', 'data-parallel processes')} with "
            f"train_micro_batch_size_per_gpu: {train // divisor} and gradient_accumulation_steps: 1"
        )
    draft.refuse(
        "train_batch_size",
        f"{train} = train_micro_batch_size_per_gpu {micro} x "
        f"gradient_accumulation_steps {steps} x data-parallel processes {data_parallel} does not "
        f"hold (the right side is {product}); set {first}, or {second}",
    )


def check_processes(draft: Draft) -> None:
    """Checks the keys that choose machines beyond their bounds."""
    draft.knows_processes = not any(field_table()[key].problems(draft[key]) for key in _COUNTS)
    if draft["include"] and draft["exclude"]:
        draft.issues.add("exclude", hostfile.BOTH_FILTERS)
        draft.knows_processes = False
