"""Saving and logging."""

from __future__ import annotations

from pathlib import Path

from ..addresses import address_problem, is_address, local_folder_of
from ..sections import Logging, Saving
from .draft import Draft


def resolve_saving(draft: Draft) -> Saving:
    """Returns where checkpoints are and when they are written."""
    save, save_copy, load, load_copy = _places(draft)
    factor = draft["checkpoint_factor"]
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
        save_copy=save_copy,
        load_path=load,
        load_copy=load_copy,
        factor=None if factor is None else float(factor),
        extra_steps=extra,
    )


def _places(draft: Draft) -> tuple[str | None, str | None, str | None, str | None]:
    """Folder and address of ``save``, and of ``load``.

    An address stands for a folder on this machine whose checkpoints are copied there.
    """
    save, load = draft["save"] or None, draft["load"] or None
    save_copy = _address_of_save(draft)
    load_copy = load if load and is_address(load) and not address_problem(load) else None
    if save is not None and is_address(save):
        save = None if save_copy is None else local_folder_of(save_copy)
        draft.notes.append(f"save: checkpoints are written to {save} and copied to the address")
    if load is not None and is_address(load):
        is_own = save_copy is not None and load.rstrip("/") == save_copy.rstrip("/")
        load = save if is_own else local_folder_of(load_copy) if load_copy else None
        draft.notes.append(f"load: checkpoints of the address are copied to {load}")
    return save, save_copy, load, load_copy


def check_load(draft: Draft) -> None:
    """Refuses an address in ``load`` that is none, whatever the program is for."""
    _checked_address(draft, "load", draft["load"])


def _address_of_save(draft: Draft) -> str | None:
    """Returns where checkpoints are copied; None if nowhere, or if the address is refused."""
    save, save_copy = draft["save"] or None, draft["save_copy"] or None
    if save_copy is None:
        return _checked_address(draft, "save", save)
    if save is None or is_address(save):
        problem = "needs save to be a folder" if save else "needs save, the folder to copy"
        draft.refuse("save_copy", problem)
        return None
    if not is_address(save_copy):
        draft.refuse("save_copy", str(address_problem(save_copy)))
    return _checked_address(draft, "save_copy", save_copy.replace("{save}", Path(save).name))


def _checked_address(draft: Draft, key: str, value: str | None) -> str | None:
    """Returns the value of a key if it is a sound address, else None; refuses unsound ones."""
    if not value or not is_address(value):
        return None
    if problem := address_problem(value):
        draft.refuse(key, problem)
        return None
    return value


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
