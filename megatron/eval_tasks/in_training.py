"""Runs lm-eval tasks during training; training itself is the same with and without them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from megatron.checkpoint.format import step_folder
from megatron.checkpointing import CheckpointContents, CheckpointSaver
from megatron.engine.runners import StepRunner
from megatron.engine.state import TrainState
from megatron.errors import EvaluationStopped
from megatron.eval_tasks.checkpoint_evaluation import make_adapter
from megatron.eval_tasks.harness import results_table, run_tasks, task_metrics
from megatron.eval_tasks.isolation import describe_failures
from megatron.eval_tasks.report_files import write_report
from megatron.eval_tasks.task_selection import load_tasks
from megatron.evaluation.trained_model import LoadedModel, read_model
from megatron.hooks.periodic import PeriodicEvaluation
from megatron.mpu import Topology
from megatron.mpu.initialize import make_topology
from megatron.neox_arguments import RunConfig
from megatron.neox_arguments.rules.evaluation import pieces_of_the_model
from megatron.reporting.run_logger import RunLogger
from megatron.runtime import accelerator
from megatron.runtime.initialize import set_timeout_on_all_groups, stop_requested
from megatron.tokenizer import AbstractTokenizer

if TYPE_CHECKING:
    from lm_eval.tasks.manager import TaskDict

__all__ = ["TaskEvaluationHook", "tasks_of_training"]

COPY_FOLDER = "evaluation.tmp"
"""Folder below ``save`` for the weights of a distributed model while it is evaluated."""


def tasks_of_training(config: RunConfig) -> TaskDict | None:
    """The tasks to run during training; None without ``eval_harness_interval``. All ranks call it.

    Raises:
        ConfigError: If a task or its data is missing.
    """
    return None if config.evaluation.tasks_interval is None else load_tasks(config)


class TaskEvaluationHook(PeriodicEvaluation):
    """Runs tasks every ``eval_harness_interval`` steps and at the end.

    A module that contains the whole model is used in place. With pipeline stages, ZeRO 3 or
    sequence parallelism one rank cannot process a text of any length on its own; then the weights
    are saved in a temporary checkpoint and loaded into a separate model. A request to stop ends the
    tasks between two batches, without results. If a task fails, for example because an ending is
    longer than the model's context, a warning reports it, the task gets no scores, and training
    continues.

    Args:
        runner: Contains the model.
        config: The resolved configuration.
        tokenizer: The run's tokenizer.
        tasks: The tasks to run, as `tasks_of_training` returns them.
        logger: Receives the scores.
        measured: Earlier results at the loaded iteration, from `measured_at`; tasks among them are
            not run again at that iteration.
    """

    def __init__(
        self,
        runner: StepRunner,
        config: RunConfig,
        tokenizer: AbstractTokenizer,
        tasks: TaskDict,
        logger: RunLogger,
        *,
        measured: Mapping[str, Mapping[str, Any]] | None = None,
    ):
        interval = config.evaluation.tasks_interval
        assert interval is not None  # otherwise `tasks_of_training` returned no tasks
        super().__init__(interval=interval, measured=measured)
        self.runner = runner
        self.config = config
        self.tokenizer = tokenizer
        self.tasks = tasks
        self.logger = logger
        self._reading_topology = self._make_reading_topology()

    def is_measured(self, state: TrainState) -> bool:
        event = (self.measured or {}).get("tasks", {})
        if event.get("iteration") != state.step:
            return False
        return event.get("results", {}).keys() >= self.tasks["tasks"].keys()

    def evaluate(self, state: TrainState) -> None:
        if self.is_measured(state):
            self.logger.say(f" tasks at iteration {state.step}: already in the run log")
            return
        self._run(state)

    def _run(self, state: TrainState) -> None:
        random_state = accelerator.rng_state()
        try:
            with self._model(state) as loaded:
                adapter = make_adapter(loaded, self.config, should_stop=stop_requested)
                results = run_tasks(adapter, self.config, self.tasks)
        except EvaluationStopped:
            self.logger.say(f" tasks at iteration {state.step} stopped: the run was asked to stop")
            state.stop = True
            return
        finally:
            accelerator.set_rng_state(random_state)
        for line in describe_failures(results):
            message = f"{line}; training continues without its scores"
            self.logger.warning(message, iteration=state.step)
        if results["results"]:
            self.logger.tasks(state.step, task_metrics(results), table=results_table(results))
        log_dir = self.config.logging.log_dir
        if log_dir is not None and dist.get_rank() == 0:
            path = Path(log_dir) / f"eval_results_{state.step}.json"
            write_report(path, {"iteration": state.step, **results})

    @contextmanager
    def _model(self, state: TrainState) -> Iterator[LoadedModel]:
        topology = self._reading_topology
        if topology is not None:
            model = self._read_copy(state, topology)
            yield LoadedModel(model, self.tokenizer, topology, state.step)
            return
        module = self.runner.engine.module
        module.eval()
        try:
            yield LoadedModel(module, self.tokenizer, self.runner.topology, state.step)
        finally:
            module.train()

    def _make_reading_topology(self) -> Topology | None:
        """Topology of a separate model for evaluation; None if the module can be used in place."""
        in_pieces = pieces_of_the_model(self.config.layout)
        if in_pieces is None:
            return None
        topology = make_topology(self.config, for_training=False)
        set_timeout_on_all_groups(self.config)
        return topology

    def _read_copy(self, state: TrainState, topology: Topology):
        """Saves the weights that each rank holds, and loads the whole model from them."""
        assert self.config.saving.save_path is not None  # the configuration requires it
        folder = Path(self.config.saving.save_path) / COPY_FOLDER
        if dist.get_rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed
        saver = CheckpointSaver(
            folder, self.runner.topology, moment_names=(), save_random_state=False
        )
        try:
            saver.save(
                self.runner.engine, CheckpointContents(state, None, {}, self.config.to_dict(), {})
            )
            return read_model(
                self.config, self.tokenizer, topology, folder=step_folder(folder, state.step)
            )
        finally:
            dist.barrier()
            if dist.get_rank() == 0:
                shutil.rmtree(folder, ignore_errors=True)
