"""Length of a run, saving and logging."""

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
    for key in ("exit_interval", "keep_last_n_checkpoints"):
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
