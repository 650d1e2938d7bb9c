"""What one rank has learnt, on all of them: a failure on one must not leave the others waiting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError

from megatron.errors import CheckpointError

__all__ = ["agree", "gather", "problem_of"]

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


def agree(problem: str | None, *, group: dist.ProcessGroup | None = None) -> str | None:
    """Returns the problem of the first rank that has one, for all of them to raise; all call it."""
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
