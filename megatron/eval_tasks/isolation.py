"""Evaluates tasks one after the other, so that a failed task loses only its own scores."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from megatron.errors import EvaluationBroken, EvaluationStopped, UserError
from megatron.eval_tasks.sharing import agree_on_end

if TYPE_CHECKING:
    from lm_eval.evaluator_utils import EvalAcc
    from lm_eval.tasks.manager import TaskDict

__all__ = ["FAILED_TASKS", "describe_failures", "evaluate_each"]

FAILED_TASKS = "failed_tasks"
"""Key in the results; its value is a mapping: task or group -> why it has no scores."""


def evaluate_each(
    evaluate: Callable[..., Any],
    tasks: TaskDict,
    *,
    before_task: Callable[[], None] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Evaluates each task on its own; all ranks call it.

    A group has scores if all of its tasks have scores.

    Args:
        evaluate: `lm_eval.evaluate`.
        tasks: The tasks, as lm-eval's task manager loads them.
        before_task: Called before each task, for example to seed random states.
        options: Further arguments of ``evaluate``, the model ``lm`` among them.

    Returns:
        What ``evaluate`` returns for all tasks together, without those that failed; these are
        listed in ``failed_tasks``.

    Raises:
        EvaluationStopped: On every rank, if one was asked to stop.
        EvaluationBroken: If ranks that compute together cannot continue.
    """
    from lm_eval.evaluator_utils import EvalAcc, aggregate_groups

    done = EvalAcc()
    failed: dict[str, str] = {}
    for name, task in tasks["tasks"].items():
        alone = {"tasks": {name: task}, "groups": {}, "group_map": {}}
        if before_task is not None:
            before_task()
        found: dict[str, Any] = {}
        try:
            found = evaluate(task_dict=alone, **options)
            problem = None
        except (EvaluationStopped, EvaluationBroken):
            raise
        except Exception as error:  # a task's file, code or answers may raise anything
            problem = _explain(error)
        problem = agree_on_end(problem)
        if problem is None:
            _add(done, found)
        else:
            failed[name] = problem
    for name, group in tasks.get("groups", {}).items():
        missing = [task.task_name for task in group.get_all_tasks() if task.task_name in failed]
        if missing:
            failed[name] = f"its task {missing[0]} failed"
        else:
            done.groups[name] = group
    samples = done.samples if options.get("log_samples") else None
    results: Any = aggregate_groups(done)._to_eval_results(samples=samples)
    return {**results, FAILED_TASKS: failed}


def describe_failures(results: Mapping[str, Any]) -> list[str]:
    """One line per task that has no scores."""
    return [f"eval_tasks: {name}: {why}" for name, why in results.get(FAILED_TASKS, {}).items()]


def _explain(error: Exception) -> str:
    """One line about an error; prints the traceback first if the error was not expected."""
    if isinstance(error, UserError):
        return str(error)
    traceback.print_exception(error, file=sys.stderr)
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:240]}".rstrip(": ")


def _add(done: EvalAcc, found: Mapping[str, Any]) -> None:
    """Moves the results of one task into the results of all tasks."""
    done.metrics.update(found["results"])
    done.configs.update(found["configs"])
    done.versions.update(found["versions"])
    done.num_fewshot.update(found["n-shot"])
    done.higher_is_better.update(found["higher_is_better"])
    done.n_samples.update(found["n-samples"])
    done.samples.update(found.get("samples", {}))
