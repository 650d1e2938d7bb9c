"""What `evaluate.py` does: measures per-domain losses and task scores of a checkpoint."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from megatron.errors import TaskError
from megatron.eval_tasks.chat import template_folder
from megatron.eval_tasks.harness import evaluation_seed, results_table, run_tasks, task_metrics
from megatron.eval_tasks.isolation import describe_failures
from megatron.eval_tasks.report_files import (
    check_results_place,
    results_path,
    unused_path,
    write_report,
)
from megatron.eval_tasks.sharing import run_together
from megatron.eval_tasks.task_selection import load_tasks
from megatron.evaluation.domains import evaluation_parts
from megatron.evaluation.losses import evaluate_parts
from megatron.evaluation.trained_model import LoadedModel, open_checkpoint
from megatron.files import is_same_path
from megatron.mpu.initialize import make_topology
from megatron.neox_arguments import RunConfig
from megatron.reporting.run_logger import RunLogger

if TYPE_CHECKING:
    from megatron.eval_tasks.eval_adapter import NeoXEvalAdapter

__all__ = ["evaluate_checkpoint", "make_adapter"]


def evaluate_checkpoint(config: RunConfig) -> dict[str, Any]:
    """Evaluates the checkpoint that ``load`` names, and writes the result file on rank 0.

    All ranks call it. Mistakes of the user are found before the model is loaded.

    Returns:
        ``iteration``; the losses that `evaluate_parts` returns, under the names of the parts; with
        ``eval_tasks`` also what `run_tasks` returns.

    Raises:
        ConfigError: If a domain, a task or its data is missing, or the results cannot be written.
        CheckpointError: If there is no checkpoint, or the checkpoint is of another model.
        TaskError: If tasks failed, with one line per failed task; the results of all other tasks
            are written before.
    """
    is_first = dist.get_rank() == 0
    run_together(
        lambda: check_results_place(config.evaluation.results_prefix), is_taking_part=is_first
    )
    parts = evaluation_parts(config)
    tasks = load_tasks(config) if config.evaluation.tasks else None
    loaded = open_checkpoint(config, make_topology(config, for_training=False))
    with closing(
        RunLogger(config, dist.get_rank(), keeps_log=_is_log_of_the_model(config))
    ) as logger:
        logger.join()
        printer = RunLogger(config, dist.get_rank(), keeps_log=False)
        report: dict[str, Any] = {"iteration": loaded.iteration}
        # training logs all its held-out data itself; results on part of them must not replace these
        report.update(evaluate_parts(loaded, [p for p in parts if p.is_configured], printer))
        report.update(evaluate_parts(loaded, [p for p in parts if not p.is_configured], logger))
        if tasks is not None:
            report.update(run_tasks(make_adapter(loaded, config), config, tasks))
            if report["results"]:
                logger.tasks(loaded.iteration, task_metrics(report), table=results_table(report))
        if is_first:
            moment = datetime.datetime.now().strftime("%m-%d-%Y-%H-%M-%S")
            num_fewshot = config.evaluation.num_fewshot if tasks is not None else None
            path = results_path(config.evaluation.results_prefix, moment, num_fewshot=num_fewshot)
            path = unused_path(path)  # another evaluation may have ended in the same second
            write_report(path, report)
            logger.say(f"results in {path}")
    if failures := describe_failures(report):
        raise TaskError(*failures)
    return report


def make_adapter(
    loaded: LoadedModel,
    config: RunConfig,
    *,
    max_batch_tokens: int | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> NeoXEvalAdapter:
    """Wraps a model for lm-eval; ``max_batch_tokens`` overrides ``eval_batch_tokens``."""
    from megatron.eval_tasks.eval_adapter import NeoXEvalAdapter

    configured = config.evaluation.batch_tokens
    return NeoXEvalAdapter(
        loaded.model,
        loaded.tokenizer,
        loaded.topology,
        max_batch_tokens=configured if max_batch_tokens is None else max_batch_tokens,
        tokenizer_folder=template_folder(config),
        seed=evaluation_seed(config),
        should_stop=should_stop,
    )


def _is_log_of_the_model(config: RunConfig) -> bool:
    """Whether the run log is that of the run that trained the model, and can be written.

    An explicit ``log_dir`` is taken to be that log. A log folder that is derived from ``save`` is
    used only if the model was loaded from ``save``.
    """
    if config.logging.log_dir is None:
        return False
    comes_from_there = (
        config.saving.load_path is not None
        and config.saving.save_path is not None
        and is_same_path(config.saving.load_path, config.saving.save_path)
    )
    is_written_out = not config.logging.is_beside_checkpoints(config.saving.save_path)
    is_meant = is_written_out or comes_from_there
    nearest = Path(config.logging.log_dir)
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    return is_meant and os.access(nearest, os.W_OK)
