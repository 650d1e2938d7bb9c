"""Whether the model can be cut as the degrees of parallelism ask."""

from __future__ import annotations

from ..purpose import Purpose
from ..sections import Layout, Model
from .draft import Draft
from .model import has_heads


def check_layout(draft: Draft, layout: Layout, model: Model, steps: int) -> None:
    """Checks degrees of parallelism against the model's sizes and the ZeRO stage.

    Args:
        draft: The configuration.
        layout: How the run is cut.
        model: The network.
        steps: Micro-batches of an optimizer step.
    """
    _check_tensor_parallel(draft, layout.model_parallel_size, model)
    if layout.pipe_parallel_size > 1:
        with draft.training_rules():  # a model that is only read has no stages
            _check_stages(draft, layout, steps)


def _check_stages(draft: Draft, layout: Layout, steps: int) -> None:
    stages = layout.pipe_parallel_size
    method = draft["pipe_partition_method"].lower()
    problem = f"must be uniform, parameters or type:<regex>, got {draft['pipe_partition_method']!r}"
    is_known = method in ("uniform", "parameters") or method.startswith("type:")
    draft.require(is_known, "pipe_partition_method", problem)
    layers = draft["num_layers"] or stages
    draft.require(
        layers >= stages,
        "pipe_parallel_size",
        f"{stages} stages cannot share {layers} layers (num_layers); set pipe_parallel_size to "
        f"{layers} or less",
    )
    draft.require(
        layout.zero_stage < 2,
        "zero_optimization.stage",
        f"{layout.zero_stage} does not work with pipe_parallel_size {stages}: a pipeline keeps "
        "gradients between micro-batches; use stage 1 or 0",
    )
    if steps < stages:
        draft.notes.append(
            f"gradient_accumulation_steps {steps} micro-batches cannot fill {stages} pipeline "
            "stages; more of them waste less time"
        )


def _check_tensor_parallel(draft: Draft, size: int, model: Model) -> None:
    is_sequence_cut = draft["sequence_parallel"] and draft.purpose is Purpose.TRAINING
    if size == 1:
        if is_sequence_cut:
            draft.notes.append("sequence_parallel does nothing with model_parallel_size 1")
        return
    counts = {}
    if has_heads(draft):
        counts["num_attention_heads"] = draft["num_attention_heads"] or size
        counts["num_kv_heads"] = model.num_kv_heads
    counts["the inner width of the MLP"] = model.mlp_inner_size
    if is_sequence_cut:
        counts["seq_length (with sequence_parallel)"] = draft["seq_length"]
    for what, count in counts.items():
        problem = f"{size} does not divide {what} {count}; set it to one of {_divisors(count, 16)}"
        draft.require(count % size == 0, "model_parallel_size", problem)


def _divisors(number: int, limit: int) -> str:
    return ", ".join(str(d) for d in range(1, min(number, limit) + 1) if number % d == 0)
