"""What `evaluate.py` does: losses of domains and scores on tasks, of a checkpoint of any layout."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
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

    All ranks call it. What the user may have got wrong is found before the model is loaded.

    Returns:
        ``iteration``; losses of domains by part, see `evaluate_parts`; with ``eval_tasks`` what
        `run_tasks` returns.

    Raises:
        ConfigError: If a domain, a task or its data is not there, or the results cannot be written.
        CheckpointError: If there is no checkpoint, or it is another model's.
        TaskError: After the results of all others are written, with a line for each task that has
            failed.
    """
    is_first = dist.get_rank() == 0
    run_together(
        lambda: check_results_place(config.evaluation.results_prefix), is_taking_part=is_first
    )
    parts = evaluation_parts(config)
    tasks = load_tasks(config) if config.evaluation.tasks else None
    loaded = open_checkpoint(config, make_topology(config, for_training=False))
    logger = RunLogger(config, dist.get_rank(), keeps_log=_is_log_of_the_model(config))
    logger.join()
    printer = RunLogger(config, dist.get_rank(), keeps_log=False)
    report: dict[str, Any] = {"iteration": loaded.iteration}
    # training logs its held-out data itself, and all of them: some must not take their place
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
        path = unused_path(path)  # another evaluation may have ended in this second
        write_report(path, report)
        logger.say(f"results in {path}")
    logger.close()
    if failures := describe_failures(report):
        raise TaskError("\n".join(failures))
    return report


def make_adapter(
    loaded: LoadedModel,
    config: RunConfig,
    *,
    max_batch_tokens: int | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> NeoXEvalAdapter:
    """A model as lm-eval sees it; ``max_batch_tokens`` wins over ``eval_batch_tokens``."""
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
    """Whether numbers belong in the run log: that of the run that trained the model, if it is ours.

    A ``log_dir`` that is written out is meant; the one that follows from ``save`` is meant when the
    model comes from there.
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
