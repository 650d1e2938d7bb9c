"""Saving and logging."""

from __future__ import annotations

from pathlib import Path

from ..sections import Logging, Saving
from .draft import Draft


def resolve_saving(draft: Draft) -> Saving:
    """Returns where checkpoints are and when they are written."""
    save, factor = draft["save"] or None, draft["checkpoint_factor"]
    extra = tuple(sorted(set(draft["extra_save_iters"] or ())))
    if save and factor is None and not extra:
        problem = "is set, but neither checkpoint_factor nor extra_save_iters is; set one of them"
        draft.refuse("save", problem)
    if factor is not None and draft["checkpoint_scale"] == "log":
        if factor <= 1:
            problem = f"must be above 1 with checkpoint_scale log, got {factor}"
            draft.refuse("checkpoint_factor", problem)
    elif factor is not None and (factor < 1 or factor != int(factor)):
        problem = f"must be a whole number of at least 1, got {factor}"
        draft.refuse("checkpoint_factor", problem)
    return draft.section(
        Saving,
        save_path=save,
        load_path=draft["load"] or None,
        factor=None if factor is None else float(factor),
        extra_steps=extra,
    )


def resolve_logging(draft: Draft, save_path: str | None) -> Logging:
    """Returns what the run writes about itself: beside its checkpoints unless it says where."""
    folder = draft["log_dir"] or (str(Path(save_path) / "logs") if save_path else None)
    return draft.section(Logging, log_dir=folder)
