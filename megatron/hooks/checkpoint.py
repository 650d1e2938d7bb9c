"""Saves checkpoints at the configured steps, and when the run is stopped."""

from __future__ import annotations

import math
from pathlib import Path

from megatron.checkpoint.copies import BackgroundCopies, open_copies
from megatron.checkpoint.format import step_folder
from megatron.checkpointing import CheckpointContents, CheckpointSaver
from megatron.data.mixed_batches import MixedBatches
from megatron.engine.runners import StepRunner
from megatron.engine.state import TrainState
from megatron.evaluation.held_out import HeldOutMeter
from megatron.hooks.base import Hook, StepReport
from megatron.neox_arguments import RunConfig
from megatron.reporting.run_logger import RunLogger
from odm import MixtureController

__all__ = ["CheckpointHook"]


class CheckpointHook(Hook):
    """Writes checkpoints ``<save>/global_step<N>``; does nothing without ``save``.

    A model whose loss is not finite is not saved, so that it cannot replace a sound checkpoint.
    ``is_saved``: the save folder already contains a checkpoint of exactly the step at which the run
    begins, which is then not written again.
    """

    def __init__(
        self,
        runner: StepRunner,
        source: MixedBatches,
        mixture: MixtureController,
        config: RunConfig,
        logger: RunLogger,
        *,
        moment_names: tuple[str, ...],
        held_out: HeldOutMeter | None = None,
        is_saved: bool = False,
    ):
        self.runner = runner
        self.source = source
        self.mixture = mixture
        self.config = config
        self.logger = logger
        self.held_out = held_out
        self._is_saved = is_saved
        self._copies: BackgroundCopies | None = None
        self._last_saved = -1
        self._loss = 0.0
        self._saver = self._make_saver(moment_names)

    def _make_saver(self, moment_names: tuple[str, ...]) -> CheckpointSaver | None:
        saving = self.config.saving
        if saving.save_path is None:
            return None
        return CheckpointSaver(
            Path(saving.save_path),
            self.runner.topology,
            moment_names=() if saving.no_save_optim else moment_names,
            save_random_state=not saving.no_save_rng,
            keep_last=saving.keep_last_n_checkpoints,
            protected_steps=frozenset(saving.extra_steps),
            in_background=saving.async_save,
            on_saved=self._on_saved,
            on_failed=self.logger.warning,
            is_in_use=lambda step: self._copies is not None and self._copies.is_waiting(step),
        )

    def _on_saved(self, step: int, folder: Path) -> None:
        self.logger.save(step, str(folder))
        if self._copies is not None:
            self._copies.add(step, folder)

    def _is_due(self, step: int) -> bool:
        last_step = self.config.schedule.train_iters
        return self.config.saving.is_save_step(step, last_step=last_step)

    def at_start(self, state: TrainState) -> None:
        """Opens ``save_copy``; saves the untrained model if iteration 0 is among those to save.

        Raises:
            CheckpointError: On every rank, if ``save_copy`` cannot be used.
        """
        logger = self.logger
        self._copies = open_copies(
            self.config, step=state.step, warn=logger.warning, tell=logger.say
        )
        if self._is_saved:
            self._last_saved = state.step
            self._copy_what_is_missing(state.step)
        elif state.step == 0 and self._is_due(0):
            self.save(state)

    def _copy_what_is_missing(self, step: int) -> None:
        """Copies the checkpoint with which the run continues if the run before did not."""
        save = self.config.saving.save_path
        if self._copies is not None and save is not None:
            self._copies.add_if_missing(step, step_folder(Path(save), step))

    def after_step(self, state: TrainState, report: StepReport) -> None:
        self._loss = report.lm_loss
        if state.stop or self._is_due(state.step):
            self.save(state)

    def at_end(self, state: TrainState) -> None:
        if state.step != self._last_saved and state.step > 0:
            self.save(state)
        self.wait()

    def wait(self) -> None:
        """Waits for a save and copies in the background; raises the error if the save failed."""
        if self._saver is not None:
            self._saver.wait()
        if self._copies is not None:
            self._copies.wait()

    def save(self, state: TrainState) -> None:
        """Saves now; with ``async_save`` copies now, and writes while training continues."""
        if self._saver is None:
            return
        if not math.isfinite(self._loss):
            self.logger.warning(f"not saved: the loss is {self._loss}", iteration=state.step)
            return
        held_out = {} if self.held_out is None else {"held_out": self.held_out.state_dict()}
        contents = CheckpointContents(
            state=state,
            mixture={**self.mixture.state_dict(), **held_out},
            config_files=dict(self.config.files),
            resolved_config=self.config.to_dict(),
            extra={
                "loss_scaler": self.runner.loss_scaler_state(),
                "config_files": list(self.config.files),  # in the order of the command line
                "samples_per_epoch": self.source.samples_by_domain,
            },
        )
        self._saver.save(self.runner.engine, contents)
        self._last_saved = state.step
