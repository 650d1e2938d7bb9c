"""Saving and logging."""

from __future__ import annotations

import math
from pathlib import Path

from ..sections import Logging, Saving
from .draft import Draft


def resolve_saving(draft: Draft) -> Saving:
    """Returns where checkpoints are and when they are written."""
    save, factor = draft["save"] or None, draft["checkpoint_factor"]
    extra = sorted(set(draft["extra_save_iters"] or ()))
    draft.require(
        save is None or factor is not None or bool(extra),
        "save",
        "save is set, but neither checkpoint_factor nor extra_save_iters is; set one of them",
    )
    draft.require(
        all(step >= 0 for step in extra),
        "extra_save_iters",
        f"extra_save_iters must be at least 0, got {extra}",
    )
    if factor is not None and draft["checkpoint_scale"] == "log":
        draft.require(
            factor > 1,
            "checkpoint_factor",
            f"checkpoint_factor must be above 1 with checkpoint_scale log, got {factor}",
        )
    elif factor is not None:
        draft.require(
            factor >= 1 and math.floor(factor) == factor,
            "checkpoint_factor",
            f"checkpoint_factor must be a whole number of at least 1, got {factor}",
        )
    return draft.section(
        Saving,
        save_path=save,
        load_path=draft["load"] or None,
        factor=None if factor is None else float(factor),
        extra_steps=tuple(extra),
    )


def resolve_logging(draft: Draft, save_path: str | None) -> Logging:
    """Returns what the run writes about itself: beside its checkpoints unless it says where."""
    folder = draft["log_dir"] or (str(Path(save_path) / "logs") if save_path else None)
    return draft.section(Logging, log_dir=folder)
