"""Saves checkpoints at the steps that the configuration names, and when the run is stopped."""

from __future__ import annotations

from pathlib import Path

from megatron.checkpointing import CheckpointContents, save_checkpoint
from megatron.hooks.base import Hook, StepReport
from megatron.logging import RunLogger
from megatron.neox_arguments import RunConfig
from megatron.runners import DataParallelRunner
from megatron.state import TrainState
from odm import MixtureController

__all__ = ["CheckpointHook"]


class CheckpointHook(Hook):
    """Writes ``<save>/global_step<N>``; does nothing without ``save``."""

    def __init__(
        self,
        runner: DataParallelRunner,
        mixture: MixtureController,
        config: RunConfig,
        logger: RunLogger,
        *,
        moment_names: tuple[str, ...],
    ):
        self.runner = runner
        self.mixture = mixture
        self.config = config
        self.logger = logger
        self.moment_names = () if config.training.no_save_optim else moment_names
        self._last_saved = -1

    def before_training(self, state: TrainState) -> None:
        """Saves the untrained model when iteration 0 is among the steps to save."""
        if state.step == 0 and self.config.derived.is_save_step(0):
            self.save(state)

    def after_step(self, state: TrainState, report: StepReport) -> None:
        if state.stop or self.config.derived.is_save_step(state.step):
            self.save(state)

    def at_end(self, state: TrainState) -> None:
        if state.step != self._last_saved and state.step > 0:
            self.save(state)

    def save(self, state: TrainState) -> None:
        """Saves now."""
        if self.config.derived.save_path is None:
            return
        contents = CheckpointContents(
            state=state,
            mixture=self.mixture.state_dict(),
            config_files=dict(self.config.files),
            resolved_config=self.config.to_dict(),
            extra={"loss_scaler": self.runner.loss_scaler_state()},
        )
        folder = save_checkpoint(
            self.runner.engine,
            contents,
            save=Path(self.config.derived.save_path),
            moment_names=self.moment_names,
            save_random_state=not self.config.training.no_save_rng,
            keep_last=self.config.training.keep_last_n_checkpoints,
            protected_steps=frozenset(self.config.derived.extra_save_steps),
        )
        self._last_saved = state.step
        self.logger.save(state.step, str(folder))
