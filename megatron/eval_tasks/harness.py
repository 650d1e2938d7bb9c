"""Runs lm-eval's tasks on a model of this program."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from megatron.eval_tasks.isolation import evaluate_each
from megatron.eval_tasks.surroundings import lm_eval_surroundings
from megatron.neox_arguments import RunConfig
from megatron.reporting.run_log import plain_json
from megatron.runtime import accelerator

if TYPE_CHECKING:
    from lm_eval.api.model import TemplateLM
    from lm_eval.tasks.manager import TaskDict

__all__ = ["evaluation_seed", "results_table", "run_tasks", "task_metrics"]

DEFAULT_SEED = 1234
"""The same number as in lm-eval's own command."""

_NO_METRICS = ("alias", "name", "sample_len", "sample_count")


def run_tasks(adapter: TemplateLM, config: RunConfig, tasks: TaskDict) -> dict[str, Any]:
    """Evaluates a model on tasks; all ranks call it.

    Random states are seeded with ``eval_seed``; a caller that continues training restores them.

    Args:
        adapter: The model, wrapped for lm-eval.
        config: The resolved configuration; its ``eval_`` fields are used.
        tasks: The tasks, as `load_tasks` returns them.

    Returns:
        lm-eval's results: ``results``, ``configs``, ``versions``, ``n-shot``, ``n-samples`` and
        others; ``failed_tasks`` (see `evaluate_each`); and ``config``, the settings of this
        evaluation. The same on all ranks, except that with ``eval_log_samples`` rank 0 also has
        ``samples``.
    """
    import lm_eval

    seed = evaluation_seed(config)
    is_first = dist.get_rank() == 0
    began = time.time()
    _prepare(tasks, num_fewshot=config.evaluation.num_fewshot, seed=seed)
    with lm_eval_surroundings(), torch.no_grad():
        results = evaluate_each(
            lm_eval.evaluate,
            tasks,
            before_task=lambda: accelerator.seed_everything(seed),
            lm=adapter,
            limit=config.evaluation.task_limit,
            bootstrap_iters=config.evaluation.bootstrap_iters if is_first else 0,
            log_samples=config.evaluation.log_samples,
            system_instruction=config.evaluation.system_instruction,
            apply_chat_template=config.evaluation.apply_chat_template,
            fewshot_as_multiturn=config.evaluation.apply_chat_template,
        )
    samples = results.pop("samples", None)
    results["configs"] = plain_json(results.get("configs", {}))  # may contain functions of a task
    results["config"] = _config_of(config, seed)
    results["lm_eval_version"] = importlib.metadata.version("lm_eval")
    results["date"] = began
    results["total_evaluation_time_seconds"] = str(time.time() - began)
    shared = [results if is_first else None]
    dist.broadcast_object_list(shared, src=0)
    assert shared[0] is not None
    return shared[0] if samples is None else {**shared[0], "samples": samples}


def evaluation_seed(config: RunConfig) -> int:
    """Seed of all randomness in an evaluation, the same for runs with different seeds."""
    seed = config.evaluation.seed
    return DEFAULT_SEED if seed is None else seed


def task_metrics(results: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Extracts the numbers from the results of `run_tasks`.

    Returns:
        Task or group -> metric -> value; a metric after a filter is ``<metric>,<filter>``.
    """
    return {
        task: {
            key.removesuffix(",none"): float(value)
            for key, value in entry.items()
            if key not in _NO_METRICS and isinstance(value, (int, float))
        }
        for task, entry in results["results"].items()
    }


def results_table(results: Mapping[str, Any]) -> str:
    """lm-eval's own table of tasks, and its table of groups if there are groups."""
    from lm_eval.utils import make_table

    columns = [column for column in ("results", "groups") if results.get(column)]
    return "\n".join(make_table(results, column) for column in columns)


def _prepare(tasks: TaskDict, *, num_fewshot: int | None, seed: int) -> None:
    """Sets few-shot examples and seed of each task, by the rules of lm-eval's own command."""
    for task in tasks["tasks"].values():
        own = task.get_config("num_fewshot")
        if own is None or (own != 0 and num_fewshot is not None):
            task.set_config(key="num_fewshot", value=num_fewshot or 0)
        task.set_fewshot_seed(seed=seed)


def _config_of(config: RunConfig, seed: int) -> dict[str, Any]:
    """Settings of the evaluation, under the names of the research code and of lm-eval."""
    return {
        "model": "neox",
        "model_args": config.by_key(),
        "num_fewshot": config.evaluation.num_fewshot,
        "batch_size": config.batch.micro_batch_size * config.layout.data_parallel_size,
        "batch_tokens": config.evaluation.batch_tokens,
        "device": accelerator.name(),
        "no_cache": True,
        "limit": config.evaluation.task_limit,
        "bootstrap_iters": config.evaluation.bootstrap_iters,
        "description_dict": None,
        "system_instruction": config.evaluation.system_instruction,
        "apply_chat_template": config.evaluation.apply_chat_template,
        "gen_kwargs": None,
        "random_seed": seed,
        "numpy_seed": seed,
        "torch_seed": seed,
        "fewshot_seed": seed,
    }
