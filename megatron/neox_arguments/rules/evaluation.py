"""Evaluation: lm-eval tasks and losses of domains, during training and after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..purpose import is_training_script
from .draft import Draft

_SMALLEST = {
    "eval_num_fewshot": 0,
    "eval_task_limit": 1,
    "eval_seed": 0,
    "eval_bootstrap_iters": 0,
    "eval_batch_tokens": 1,
}


def check_evaluation(draft: Draft) -> None:
    """Checks the keys that say what is evaluated and how."""
    draft.require(
        draft["eval_iters"] is not None and draft["eval_iters"] >= 0,
        "eval_iters",
        f"eval_iters must be at least 0, got {draft['eval_iters']}",
    )
    for key, smallest in _SMALLEST.items():
        value = draft[key]
        draft.require(
            value is None or value >= smallest,
            key,
            f"{key} must be at least {smallest}, got {value}",
        )
    for entry in draft["eval_domains"] or ():
        name, equals, path = entry.partition("=")
        draft.require(
            bool(name) and (bool(path) or not equals),
            "eval_domains",
            f"eval_domains must be names of domains, or name=path, got {entry!r}",
        )


def nothing_to_evaluate_problem(eval_iters: int | None) -> str:
    """What an evaluation without held-out data and tasks is refused with."""
    switched_off = " (eval_iters is 0)" if eval_iters == 0 else ""
    return (
        "valid_data_paths: there is no held-out data to evaluate; set it or test_data_paths, set "
        f"split to divide the training data, or name data with --domains name=path{switched_off}"
    )


def check_evaluation_in_training(draft: Draft, derived: Mapping[str, Any]) -> None:
    """Checks the keys that say when a training scores tasks.

    Args:
        draft: The configuration.
        derived: What topology and ZeRO rules returned.
    """
    interval = draft["eval_harness_interval"]
    if interval is None:
        if draft["eval_tasks"] and is_training_script(draft["user_script"]):
            draft.notes.append(
                "train.py does not run eval_tasks without eval_harness_interval; set it, or use "
                "evaluate.py"
            )
        return
    draft.require(
        interval >= 1,
        "eval_harness_interval",
        f"eval_harness_interval must be at least 1, got {interval}",
    )
    draft.require(
        bool(draft["eval_tasks"]),
        "eval_harness_interval",
        f"eval_harness_interval is {interval} but there are no eval_tasks; set them",
    )
    in_pieces = pieces_of_the_model(
        pipe=derived["pipe_parallel_size"],
        zero_stage=derived["zero_stage"],
        sequence_parallel=draft["sequence_parallel"] and derived["model_parallel_size"] > 1,
    )
    draft.require(
        in_pieces is None or bool(draft["save"]),
        "eval_harness_interval",
        f"eval_harness_interval with {in_pieces} reads the model from a temporary checkpoint in "
        "the save folder, and there is none; set save",
    )


def pieces_of_the_model(*, pipe: int, zero_stage: int, sequence_parallel: bool) -> str | None:
    """Names the key for which a rank's module cannot read a text by itself; None where it can."""
    if pipe > 1:
        return f"pipe_parallel_size {pipe}"
    if zero_stage == 3:
        return "zero_optimization.stage 3"
    return "sequence_parallel" if sequence_parallel else None
