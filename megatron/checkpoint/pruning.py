"""Deletes old checkpoints: one rank takes them out of force, then all ranks delete their files.

A checkpoint that is to go is renamed first. So whatever is interrupted, none that is incomplete has
a valid name; the next save removes what was left.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence, Set
from pathlib import Path

import torch.distributed as dist

from megatron.checkpoint.foreign import is_neox_checkpoint
from megatron.checkpoint.format import checkpoint_steps, step_folder
from megatron.checkpoint.runs import rank_file
from megatron.files import retired_name
from megatron.runtime.agreement import agree, from_first, problem_of

__all__ = ["delete_old_checkpoints", "delete_share"]


def delete_old_checkpoints(
    save: Path,
    *,
    newest: int,
    keep_last: int,
    protected: Set[int],
    is_in_use: Callable[[int], bool] = lambda step: False,
    group: dist.ProcessGroup | None = None,
) -> str | None:
    """Deletes checkpoints up to ``newest`` except the last ones; all ranks call it.

    Later checkpoints were left by a run that then went back to an earlier iteration. They are not
    counted; otherwise the one that has just been saved could be deleted first. Nor are those of
    GPT-NeoX, from which a run may have continued.

    Args:
        save: Folder of the run.
        newest: Step of the checkpoint that has just been saved.
        keep_last: Number of checkpoints to keep, at least 1.
        protected: Steps that are neither counted nor deleted.
        is_in_use: Tells on rank 0 whether a checkpoint must not be deleted yet.
        group: Contains all ranks; None is the default group.

    Returns:
        On rank 0, what went wrong while a checkpoint was renamed.
    """
    rank, num_ranks = dist.get_rank(group), dist.get_world_size(group)
    retired: list[str] = []

    def retire() -> None:
        steps = _steps_to_delete(save, newest, keep_last=keep_last, protected=protected)
        for step in (step for step in steps if not is_in_use(step)):
            folder = step_folder(save, step)
            os.replace(folder, retired_name(folder))
            retired.append(retired_name(folder).name)

    problem = problem_of(retire) if rank == 0 else None
    names: Sequence[str] = from_first(retired, group=group)
    for name in names:
        delete_share(save / name, rank, num_ranks)
    if names:
        agree(None, group=group)  # all have deleted their share
    for name in names if rank == 0 else ():
        shutil.rmtree(save / name, ignore_errors=True)
    return problem


def _steps_to_delete(
    save: Path, newest: int, *, keep_last: int, protected: Set[int]
) -> Sequence[int]:
    candidates = [
        step
        for step in checkpoint_steps(save)
        if step <= newest
        and step not in protected
        and not is_neox_checkpoint(step_folder(save, step))
    ]
    return candidates[:-keep_last]


def delete_share(folder: Path, rank: int, num_ranks: int) -> None:
    """Deletes every n-th file of a rank; there may be more of them than there are ranks now."""
    number = rank
    try:
        while True:
            os.unlink(folder / rank_file(number))
            number += num_ranks
    except OSError:  # there are no more, or rank 0 tries again
        return
