"""Whether the blocks and the loss can be compiled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..sections import Layout, Model
from .draft import Draft


def compilation_obstacles(
    layout: Layout, model: Model, flops_profiler: Mapping[str, Any] | None
) -> list[str]:
    """Returns the settings that do not work with compiled blocks, each as ``key: value``."""
    found = {
        f"model_parallel_size: {layout.model_parallel_size}": layout.model_parallel_size > 1,
        f"zero_optimization.stage: {layout.zero_stage}": layout.zero_stage == 3,
        "flops_profiler": bool((flops_profiler or {}).get("enabled")),
        f"pos_emb: {model.pos_emb}": model.pos_emb in ("alibi", "rpe"),
        "reset_attention_mask: true": model.reset_attention_mask,
        "windows or local layers": any(reach is not None for reach in model.attention_reach),
    }
    return [setting for setting, is_there in found.items() if is_there]


def check_compilation(draft: Draft, layout: Layout, model: Model) -> None:
    """Refuses ``torch_compile: true`` with settings that do not work with it."""
    obstacles = compilation_obstacles(layout, model, draft["flops_profiler"])
    if draft["torch_compile"] is True and obstacles:
        problem = f"true does not work with {', '.join(obstacles)}; use auto or false"
        draft.refuse("torch_compile", problem)
