"""Finds earlier evaluations in the run log: none is repeated, and none is left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import torch.distributed as dist

from megatron.reporting.run_log import read_run_log

__all__ = ["evaluation_settings", "measured_at"]

_LOSSES = {
    "derived.split": "data.split",
    "derived.seq_length": "data.seq_length",
    "other.eod_mask_loss": "data.eod_mask_loss",
    "reset_attention_mask": "model.reset_attention_mask",
    "reset_position_ids": "model.reset_position_ids",
}
_DECIDES = {
    "validation": {"derived.valid_paths": "data.valid_paths", **_LOSSES},
    "test": {"derived.test_paths": "data.test_paths", **_LOSSES},
    "tasks": {
        f"text_generation.eval_{key}": f"evaluation.{key}"
        for key in (
            "task_paths",
            "num_fewshot",
            "task_limit",
            "seed",
            "apply_chat_template",
            "system_instruction",
        )
    },
}
"""Event -> what decides what is measured, besides the number of samples and the tasks.

The names in the run log, which are those of its first version -> places in the configuration.
"""


def evaluation_settings(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings that affect the results of each kind of evaluation, for start and resume events.

    Args:
        config: The resolved configuration, as plain data.
    """

    def value(place: str) -> Any:
        section, _, field = place.partition(".")
        return config[section][field]

    return {
        event: {name: value(place) for name, place in places.items()}
        for event, places in _DECIDES.items()
    }


def measured_at(
    log_dir: str | None, step: int, settings: Mapping[str, Any]
) -> dict[str, dict[str, Any]] | None:
    """Finds the evaluations of an iteration in the run log.

    All ranks call it and get what rank 0 read, since only rank 0's machine may have the log.

    Args:
        log_dir: Folder of the run log; None if the run has none.
        step: The iteration.
        settings: Present `evaluation_settings`; evaluations with other settings do not count.

    Returns:
        Event name -> the event; None if there is no readable log.
    """
    found: list[dict[str, dict[str, Any]] | None] = [None]
    if dist.get_rank() == 0 and log_dir is not None:
        with suppress(OSError, ValueError):
            found[0] = _find(read_run_log(log_dir), step, settings)
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(found)
    return found[0]


def _find(
    events: Iterable[dict[str, Any]], step: int, settings: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    found = {}
    used: Any = {}
    for event in events:
        name = event["event"]
        if name in ("start", "resume"):
            used = event.get("evaluation")
        elif name in settings and event["iteration"] == step and isinstance(used, dict):
            if used.get(name) == settings[name]:
                found[name] = event
    return found
