"""What a run has measured before, from its log, so that a finished run does not do it again."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch.distributed as dist

from megatron.run_log import read_run_log

__all__ = ["measured_at"]

_EVENTS = ("validation", "test", "tasks")


def measured_at(log_dir: str | None, step: int) -> dict[str, dict[str, Any]]:
    """Finds the evaluations of an iteration in the run log.

    All ranks call it and get what rank 0 read: the log may be on a disk of its machine.

    Args:
        log_dir: Folder of the run log; None where the run has none.
        step: The iteration.

    Returns:
        Event name -> the event; empty where there is no sound log.
    """
    found: list[dict[str, dict[str, Any]]] = [{}]
    if dist.get_rank() == 0 and log_dir is not None:
        with suppress(OSError, ValueError):
            found[0] = {
                event["event"]: event
                for event in read_run_log(log_dir)
                if event["event"] in _EVENTS and event["iteration"] == step
            }
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(found)
    return found[0]
