"""Whether the model can be cut as the degrees of parallelism ask."""

from __future__ import annotations

import re

from odm.wording import counted

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
    method = draft["pipe_partition_method"]
    if not re.match("uniform$|parameters$|type:", method, re.IGNORECASE):
        problem = f"must be uniform, parameters or type:<regex>, got {method!r}"
        draft.refuse("pipe_partition_method", problem)
    layers = draft["num_layers"] or stages
    if layers < stages:
        advice = f"set pipe_parallel_size to {layers} or less"
        problem = f"{stages} stages cannot share {counted(layers, 'layer')} (num_layers); {advice}"
        draft.refuse("pipe_parallel_size", problem)
    if layout.zero_stage > 1:
        draft.refuse(
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
            draft.note_no_effect("sequence_parallel", "model_parallel_size is 1")
        return
    counts = {}
    if has_heads(draft):
        counts["num_attention_heads"] = draft["num_attention_heads"] or size
        counts["num_kv_heads"] = model.num_kv_heads
    counts["the inner width of the MLP"] = model.mlp_inner_size
    if is_sequence_cut:
        counts["seq_length (with sequence_parallel)"] = draft["seq_length"]
    for what, count in counts.items():
        if count % size:
            divisors = ", ".join(str(n) for n in range(1, min(count, 16) + 1) if count % n == 0)
            problem = f"{size} does not divide {what} {count}; set it to one of {divisors}"
            draft.refuse("model_parallel_size", problem)
