"""What one rank has learnt, on all of them: a failure on one must not leave the others waiting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from safetensors import SafetensorError

from megatron.errors import CheckpointError
from megatron.runtime import accelerator

__all__ = ["agree", "from_first", "gather", "problem_of", "reduce_at_first"]

T = TypeVar("T")

_FILE_ERRORS = (OSError, CheckpointError, SafetensorError)  # the last is what a full disk becomes


def gather(value: Any, *, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Returns the values of all ranks, in their order; all of them call it.

    Args:
        value: Can be pickled.
        group: The ranks that take part; None is all.
    """
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def reduce_at_first(
    value: T, combine: Callable[[list[T]], T], *, group: dist.ProcessGroup | None = None
) -> T | None:
    """Combines the values of all ranks on rank 0; the others get None. All of them call it.

    The values meet in a binary tree, so that rank 0 has as many to combine as the number of ranks
    has digits. With NCCL each is sent as a batch of one, which uses the communicator of the group;
    a single message would make another communicator for each pair of ranks. With other backends
    than these two, all values are sent to rank 0.

    Args:
        value: Can be pickled.
        combine: Of the values of neighbouring ranks, in their order; it must be associative.
        group: Contains all ranks; None is the default group. With NCCL they must have communicated
            in it before, as `agree` does, since only then a pair may do so alone.
    """
    rank, num_ranks = dist.get_rank(group), dist.get_world_size(group)
    backend = dist.get_backend(group)
    in_batches = "gloo" not in backend
    if in_batches and backend != "nccl":
        values: list[Any] = [None] * num_ranks
        dist.gather_object(value, values if rank == 0 else None, dst=0, group=group)
        return combine(values) if rank == 0 else None
    distance = 1
    while distance < num_ranks:
        if rank % (2 * distance):
            to = rank - distance
            dist.send_object_list([value], dst=to, group=group, use_batch=in_batches)
            return None
        if rank + distance < num_ranks:
            received: list[Any] = [None]
            source = rank + distance
            dist.recv_object_list(received, src=source, group=group, use_batch=in_batches)
            value = combine([value, received[0]])
        distance *= 2
    return value


def from_first(value: T, *, group: dist.ProcessGroup | None = None) -> T:
    """Returns rank 0's value on all ranks; all of them call it.

    Args:
        value: Can be pickled; what other ranks give is not used.
        group: Contains all ranks; None is the default group.
    """
    values: list[T] = [value]
    dist.broadcast_object_list(values, src=0, group=group)
    return values[0]


def agree(problem: str | None, *, group: dist.ProcessGroup | None = None) -> str | None:
    """Returns the problem of the first rank that has one, for all of them to raise; all call it.

    While nothing is wrong, the ranks exchange one number, and no text.
    """
    is_on_cpu = "gloo" in dist.get_backend(group)
    device = torch.device("cpu") if is_on_cpu else accelerator.device()
    has_problem = torch.tensor(int(bool(problem)), device=device)
    dist.all_reduce(has_problem, op=dist.ReduceOp.MAX, group=group)
    if not has_problem.item():
        return None
    return next((text for text in gather(problem, group=group) if text), None)


def problem_of(
    action: Callable[[], None], *, errors: tuple[type[Exception], ...] = _FILE_ERRORS
) -> str | None:
    """Runs ``action``; returns as text what went wrong, for `agree`.

    Args:
        action: What only some ranks do, or what may fail on some.
        errors: What is caught: as given, only what a file may cause. Our own mistakes pass through.
    """
    try:
        action()
    except errors as error:
        return str(error)
    return None
