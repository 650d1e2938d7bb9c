"""Length of a run, saving, logging and generation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from .draft import Draft


def resolve_run(draft: Draft) -> dict[str, Any]:
    """Returns the length of the run, where it writes and when it saves."""
    iters = draft["train_iters"]
    if iters is None:
        draft.issues.add(
            "train_iters", "train_iters is required; set the number of optimizer steps"
        )
    else:
        draft.require(iters >= 1, "train_iters", f"train_iters must be at least 1, got {iters}")
    for key in ("log_interval", "eval_interval"):
        value = draft[key]
        draft.require(
            value is not None and value >= 1, key, f"{key} must be at least 1, got {value}"
        )
    draft.require(
        draft["eval_iters"] is not None and draft["eval_iters"] >= 0,
        "eval_iters",
        f"eval_iters must be at least 0, got {draft['eval_iters']}",
    )
    for key in ("exit_interval", "keep_last_n_checkpoints", "eval_task_limit"):
        value = draft[key]
        draft.require(value is None or value >= 1, key, f"{key} must be at least 1, got {value}")
    save, load = draft["save"] or None, draft["load"] or None
    log_dir = draft["log_dir"] or (str(Path(save) / "logs") if save else None)
    return {
        "train_iters": iters or 1,
        "save_path": save,
        "load_path": load,
        "log_dir": log_dir,
        **_save_steps(draft, save),
        "text_gen_type": _text_generation(draft),
    }


def _save_steps(draft: Draft, save: str | None) -> dict[str, Any]:
    factor, scale = draft["checkpoint_factor"], draft["checkpoint_scale"]
    extra = sorted(set(draft["extra_save_iters"] or ()))
    draft.require(
        save is None or factor is not None or bool(extra),
        "save",
        "save is set but neither checkpoint_factor nor extra_save_iters says when; set one of them",
    )
    draft.require(
        all(step >= 0 for step in extra),
        "extra_save_iters",
        f"extra_save_iters must be at least 0, got {extra}",
    )
    if factor is not None and scale == "log":
        draft.require(
            math.isfinite(factor) and factor > 1,
            "checkpoint_factor",
            f"checkpoint_factor must be above 1 with checkpoint_scale log, got {factor}",
        )
    elif factor is not None:
        draft.require(
            math.isfinite(factor) and factor >= 1 and float(factor).is_integer(),
            "checkpoint_factor",
            f"checkpoint_factor must be a whole number of at least 1, got {factor}",
        )
    return {
        "save_scale": scale,
        "save_factor": None if factor is None else float(factor),
        "extra_save_steps": tuple(extra),
    }


def _text_generation(draft: Draft) -> str:
    kinds = ("unconditional", "input-file", "interactive")
    kind = draft["text_gen_type"]
    if kind is None:
        kind = "input-file" if draft["sample_input_file"] else "unconditional"
    draft.require(
        kind in kinds,
        "text_gen_type",
        f"text_gen_type must be one of {', '.join(kinds)}, got {kind!r}",
    )
    draft.require(
        kind != "input-file" or bool(draft["sample_input_file"]),
        "text_gen_type",
        "text_gen_type is input-file but there is no sample_input_file; set it or pass -i",
    )
    draft.require(
        draft["temperature"] >= 0,
        "temperature",
        f"temperature must be at least 0, got {draft['temperature']}",
    )
    draft.require(
        0 <= draft["top_p"] <= 1, "top_p", f"top_p must be in [0, 1], got {draft['top_p']}"
    )
    draft.require(draft["top_k"] >= 0, "top_k", f"top_k must be at least 0, got {draft['top_k']}")
    for key in ("maximum_tokens", "num_samples"):
        draft.require(draft[key] >= 1, key, f"{key} must be at least 1, got {draft[key]}")
    draft.require(
        draft["eval_num_fewshot"] >= 0,
        "eval_num_fewshot",
        f"eval_num_fewshot must be at least 0, got {draft['eval_num_fewshot']}",
    )
    return str(kind)
