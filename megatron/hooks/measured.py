"""What a run has measured before, from its log, so that a finished run does not do it again."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch.distributed as dist

from megatron.run_log import read_run_log

__all__ = ["measured_alike", "measured_at"]

_EVENTS = ("validation", "test", "tasks")
_LOSSES = ("derived.split", "derived.seq_length", "other.eod_mask_loss")
_DECIDES = {
    "validation": ("derived.valid_paths", *_LOSSES),
    "test": ("derived.test_paths", *_LOSSES),
    "tasks": tuple(
        f"text_generation.{key}"
        for key in (
            "eval_task_paths",
            "eval_num_fewshot",
            "eval_task_limit",
            "eval_seed",
            "eval_apply_chat_template",
            "eval_system_instruction",
        )
    ),
}
"""Event -> the keys that decide what is measured, beside the number of samples and the tasks."""


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


def measured_alike(
    measured: Mapping[str, dict[str, Any]],
    config: Mapping[str, Any],
    saved_config: Mapping[str, Any] | None,
) -> dict[str, dict[str, Any]]:
    """Leaves out what was measured on other text, or in another way, than is asked for now.

    Args:
        measured: From `measured_at`.
        config: The resolved configuration, as plain data.
        saved_config: That of the run that measured; None leaves nothing.
    """
    if saved_config is None:
        return {}

    def value(data: Mapping[str, Any], place: str) -> Any:
        group, _, key = place.partition(".")
        return data.get(group, {}).get(key)

    return {
        name: event
        for name, event in measured.items()
        if all(value(config, key) == value(saved_config, key) for key in _DECIDES[name])
    }
