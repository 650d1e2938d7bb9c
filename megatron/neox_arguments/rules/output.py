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
    _check_profile(draft, draft["tensorboard_dir"] or folder)
    return draft.section(Logging, log_dir=folder)


def _check_profile(draft: Draft, folder: str | None) -> None:
    first, last = draft["profile_step_start"], draft["profile_step_stop"]
    asked_for = [key for key in ("profile", "memory_profiling") if draft[key]]
    if not asked_for:
        return
    if last < first:
        problem = f"{last} is before profile_step_start {first}; set it to {first} or more"
        draft.refuse("profile_step_stop", problem)
    for key in asked_for:
        has_path = key == "memory_profiling" and draft["memory_profiling_path"]
        if folder is None and not has_path:
            draft.refuse(key, "needs a folder to write to; set log_dir, save or tensorboard_dir")
    last_step = draft["train_iters"]
    if last_step is not None and first > last_step:
        draft.notes.append(
            f"{' and '.join(asked_for)}: no effect, since profile_step_start {first} is after the "
            f"last iteration {last_step}"
        )
