"""Saves checkpoints: one code path for every layout and every ZeRO stage.

Each rank writes the fragments it owns into ``global_step<N>.tmp``; rank 0 adds the index and
renames the folder; ``latest`` is replaced last. Whenever a save is interrupted, the previous
checkpoint stays valid. `megatron.checkpoint.loading` reads checkpoints.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron.checkpoint.format import latest_step, step_folder
from megatron.checkpoint.index import write_index
from megatron.checkpoint.pruning import delete_old_checkpoints
from megatron.checkpoint.schema import CONFIGS, RUN_FILES
from megatron.checkpoint.snapshot import (
    Snapshot,
    combine_reports,
    take_snapshot,
    write_snapshot,
)
from megatron.engine.state import TrainState
from megatron.errors import CheckpointError
from megatron.files import replace_folder, retired_name, write_json_atomic, write_text_atomic
from megatron.mpu import RankGrid, Topology
from megatron.runtime.agreement import agree, problem_of, reduce_at_first

__all__ = ["CheckpointContents", "CheckpointSaver", "undo_interrupted_replacement"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointContents:
    """What a checkpoint contains besides weights and moments."""

    state: TrainState
    mixture: dict[str, Any] | None
    """State of the mixture, plain JSON; None starts it from zero."""
    config_files: dict[str, str]
    """{basename: text} of the YAML files, unchanged."""
    resolved_config: dict[str, Any]
    extra: dict[str, Any]
    """Further content of ``state.json``, such as the loss scale; plain JSON."""


class CheckpointSaver:
    """Writes ``<save>/global_step<N>``; all ranks call every method together.

    Args:
        save: Folder of the run.
        topology: The grid of ranks, and this rank's place in it.
        moment_names: Names of the moments to save; empty saves only weights.
        save_random_state: Whether to save random states, so that a resumed run continues the same
            random numbers.
        keep_last: Number of checkpoints to keep; None keeps all.
        protected_steps: Steps that are never deleted.
        in_background: Copies first, then writes in a thread while training continues.
        on_saved: Called on every rank with step and folder when a checkpoint is complete; by the
            thread if it saves in the background.
        on_failed: Called on every rank, by the thread, with the error of a save in the background.
        is_in_use: Tells on rank 0 whether a checkpoint must not be deleted yet; it is deleted after
            a later save.
    """

    def __init__(
        self,
        save: Path,
        topology: Topology,
        *,
        moment_names: tuple[str, ...],
        save_random_state: bool = True,
        keep_last: int | None = None,
        protected_steps: frozenset[int] = frozenset(),
        in_background: bool = False,
        on_saved: Callable[[int, Path], None] = lambda step, folder: None,
        on_failed: Callable[[str], None] = lambda message: None,
        is_in_use: Callable[[int], bool] = lambda step: False,
    ):
        self._save = save
        self._topology = topology
        self._moment_names = moment_names
        self._save_random_state = save_random_state
        self._keep_last = keep_last
        self._protected_steps = protected_steps
        self._on_saved = on_saved
        self._on_failed = on_failed
        self._is_in_use = is_in_use
        # a separate group, so that the thread's messages do not mix with those of training
        self._group = dist.new_group(backend="gloo") if in_background else None
        self._in_background = in_background
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, engine, contents: CheckpointContents) -> None:
        """Saves, after waiting for the previous save to end.

        Raises:
            CheckpointError: On every rank, if any rank could not write; what was written is
                removed, and the previous checkpoint stays valid. An error in the background is
                passed to ``on_failed`` and raised by `wait`. A `save` after such an error writes in
                the foreground; if it fails as well, the run ends.
        """
        has_failed = self._join() is not None
        snapshot = take_snapshot(
            engine,
            self._topology,
            moment_names=self._moment_names,
            with_random_state=self._save_random_state,
        )
        contents = replace(contents, state=copy(contents.state))  # training changes its own
        if not self._in_background or has_failed:
            self._finish(snapshot, contents)
            return
        self._thread = threading.Thread(
            target=self._finish_in_thread, args=(snapshot, contents), name="checkpoint"
        )
        self._thread.start()

    def wait(self) -> None:
        """Waits until the last save is complete; raises its error if it failed."""
        error = self._join()
        if error is not None:
            raise error

    def _join(self) -> Exception | None:
        """Waits for the thread; returns its error, only once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        return error

    def _finish_in_thread(self, snapshot: Snapshot, contents: CheckpointContents) -> None:
        try:
            self._finish(snapshot, contents)
        except Exception as error:
            self._error = error
            self._on_failed(str(error))

    def _finish(self, snapshot: Snapshot, contents: CheckpointContents) -> None:
        """Writes, publishes and prunes."""
        is_first = self._topology.rank == 0
        final = step_folder(self._save, contents.state.step)
        temporary = final.with_name(final.name + ".tmp")
        problem = problem_of(lambda: _make_empty_folder(temporary)) if is_first else None
        self._raise_if_any(problem, final)
        own: dict[str, Any] = {}
        problem = problem_of(lambda: own.update(write_snapshot(snapshot, temporary)))
        report = reduce_at_first({"problem": problem, **own}, combine_reports, group=self._group)
        problem = None if report is None else report["problem"]
        if problem is None and report is not None:
            index = _index(report, self._topology.grid, self._moment_names)
            problem = problem_of(lambda: _publish(temporary, final, contents, index))
        if is_first and problem is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        self._raise_if_any(problem, final)
        if self._keep_last:
            problem = delete_old_checkpoints(
                self._save,
                newest=contents.state.step,
                keep_last=self._keep_last,
                protected=self._protected_steps,
                is_in_use=self._is_in_use,
                group=self._group,
            )
            if problem:  # the new checkpoint is valid nevertheless
                logger.warning("keep_last_n_checkpoints: could not delete an old one: %s", problem)
        self._on_saved(contents.state.step, final)

    def _raise_if_any(self, problem: str | None, folder: Path) -> None:
        if first := agree(problem, group=self._group):
            raise CheckpointError(
                f"{folder}: could not save: {first}; the previous checkpoint stays valid"
            )


def _make_empty_folder(folder: Path) -> None:
    """Creates ``folder``, empty; removes the incomplete files that a killed run left."""
    for left_over in folder.parent.glob("global_step*.tmp"):
        shutil.rmtree(left_over)
    folder.mkdir(parents=True)


def _publish(
    temporary: Path,
    final: Path,
    contents: CheckpointContents,
    index: dict[str, Any],
) -> None:
    """Adds the files of rank 0, renames the folder, and writes its name into ``latest``."""
    configs = temporary / CONFIGS
    configs.mkdir()
    for name, text in contents.config_files.items():
        write_text_atomic(configs / name, text)
    write_json_atomic(configs / "resolved.json", contents.resolved_config)
    state = {**contents.extra, "counters": contents.state.state_dict()}
    write_json_atomic(temporary / "state.json", state)
    write_json_atomic(temporary / "mixture.json", contents.mixture)
    write_index(temporary, **index, others=RUN_FILES)
    replace_folder(temporary, final)  # ``final`` exists if the run went back to an earlier step
    write_text_atomic(final.parent / "latest", final.name)


def undo_interrupted_replacement(save: Path) -> None:
    """Restores the checkpoint that ``latest`` names if the run was killed while replacing it.

    Call it with the folder locked, and before looking for a checkpoint, since the next save removes
    the leftovers.
    """
    latest = latest_step(save)
    if latest is None:
        return
    named = step_folder(save, latest)
    if retired_name(named).is_dir() and not named.exists():
        os.replace(retired_name(named), named)


def _index(report: dict[str, Any], grid: RankGrid, moment_names: tuple[str, ...]) -> dict[str, Any]:
    """The arguments of `write_index`, from the report of all ranks."""
    return {
        "layout": {"dp": grid.data, "tp": grid.model, "pp": grid.pipe},
        "moments": [name for name in moment_names if name in report["moments"]],
        "parameters": report["parameters"],
        "files": report["files"],
    }
