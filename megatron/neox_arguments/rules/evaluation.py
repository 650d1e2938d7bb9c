"""Evaluation: lm-eval tasks and losses of domains, during training and after it."""

from __future__ import annotations

from ..purpose import is_training_script
from ..sections import Evaluation, Layout
from .draft import Draft


def resolve_evaluation(draft: Draft) -> Evaluation:
    """Returns what is evaluated and how."""
    written = draft["eval_iters"] if draft.is_set("eval_iters") else None
    return draft.section(Evaluation, named_iters=written)


def nothing_to_evaluate_problem(eval_iters: int | None) -> str:
    """What an evaluation without held-out data and tasks is refused with."""
    switched_off = " (eval_iters is 0)" if eval_iters == 0 else ""
    return (
        "valid_data_paths: there is no held-out data to evaluate; set it or test_data_paths, set "
        f"split to divide the training data, or name data with --domains name=path{switched_off}"
    )


def check_evaluation_in_training(draft: Draft, layout: Layout) -> None:
    """Checks the keys that say when a training scores tasks."""
    interval = draft["eval_harness_interval"]
    if interval is None:
        if draft["eval_tasks"] and is_training_script(draft["user_script"]):
            draft.notes.append(
                "train.py does not run eval_tasks without eval_harness_interval; set it, or use "
                "evaluate.py"
            )
        return
    if not draft["eval_tasks"]:
        draft.refuse(
            "eval_harness_interval", f"is {interval} but there are no eval_tasks; set them"
        )
    in_pieces = pieces_of_the_model(layout)
    if in_pieces and not draft["save"]:
        draft.refuse(
            "eval_harness_interval",
            f"with {in_pieces} reads the model from a temporary checkpoint in the save folder, and "
            "there is none; set save",
        )


def pieces_of_the_model(layout: Layout) -> str | None:
    """Names the key for which a rank's module cannot read a text by itself; None where it can."""
    if layout.pipe_parallel_size > 1:
        return f"pipe_parallel_size {layout.pipe_parallel_size}"
    if layout.zero_stage == 3:
        return "zero_optimization.stage 3"
    return "sequence_parallel" if layout.sequence_parallel else None
