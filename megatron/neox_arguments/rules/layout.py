"""Whether the model can be cut as the degrees of parallelism ask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..purpose import Purpose
from .draft import Draft
from .model import has_heads
from .precision import written_as


def check_layout(draft: Draft, derived: Mapping[str, Any]) -> None:
    """Checks degrees of parallelism against the model's sizes and the ZeRO stage.

    Args:
        draft: The configuration.
        derived: What topology, batch, ZeRO and model rules returned.
    """
    _check_tensor_parallel(draft, derived, derived["model_parallel_size"])
    if derived["pipe_parallel_size"] > 1:
        with draft.training_rules():  # a model that is only read has no stages
            _check_stages(draft, derived, derived["pipe_parallel_size"])


def _check_stages(draft: Draft, derived: Mapping[str, Any], stages: int) -> None:
    method = draft["pipe_partition_method"].lower()
    draft.require(
        method in ("uniform", "parameters") or method.startswith("type:"),
        "pipe_partition_method",
        f"pipe_partition_method must be uniform, parameters or type:<regex>, got "
        f"{draft['pipe_partition_method']!r}",
    )
    layers = draft["num_layers"] or stages
    draft.require(
        layers >= stages,
        "pipe_parallel_size",
        f"pipe_parallel_size {stages} stages cannot share {layers} layers (num_layers); set "
        f"pipe_parallel_size to {layers} or less",
    )
    owner, name = written_as(draft, "stage")
    draft.require(
        derived["zero_stage"] < 2,
        owner,
        f"{name} {derived['zero_stage']} does not work with pipe_parallel_size "
        f"{stages}: a pipeline keeps gradients between micro-batches; use stage 1 or 0",
    )
    steps = derived["gradient_accumulation_steps"]
    if steps < stages:
        draft.notes.append(
            f"gradient_accumulation_steps {steps} micro-batches cannot fill {stages} pipeline "
            "stages; more of them waste less time"
        )


def _check_tensor_parallel(draft: Draft, derived: Mapping[str, Any], size: int) -> None:
    if size == 1:
        if draft["sequence_parallel"] and draft.purpose is Purpose.TRAINING:
            draft.notes.append("sequence_parallel does nothing with model_parallel_size 1")
        return
    counts = {}
    if has_heads(draft):
        counts["num_attention_heads"] = draft["num_attention_heads"] or size
        counts["num_kv_heads"] = derived["num_kv_heads"]
    counts["the inner width of the MLP"] = derived["mlp_inner_size"]
    if draft["sequence_parallel"] and draft.purpose is Purpose.TRAINING:
        counts["seq_length (with sequence_parallel)"] = derived["seq_length"]
    for what, count in counts.items():
        draft.require(
            count % size == 0,
            "model_parallel_size",
            f"model_parallel_size {size} does not divide {what} {count}; set it to one of "
            f"{_divisors(count, 16)}",
        )


def _divisors(number: int, limit: int) -> str:
    return ", ".join(str(d) for d in range(1, min(number, limit) + 1) if number % d == 0)
