#!/usr/bin/env python
"""Evaluates a checkpoint: ``./deepy.py evaluate.py model.yml data.yml [--eval_tasks ...]``."""

from __future__ import annotations

if __name__ == "__main__":
    from megatron.launcher.installation import explain_missing_packages

    explain_missing_packages()

from megatron.eval_tasks.requests import require_tasks
from megatron.neox_arguments import NeoXArgs, Purpose, resolve
from megatron.runtime.entry_point import run_program
from megatron.runtime.initialize import initialize_megatron, prepare_process, shutdown


def main(input_args: list[str] | None = None, overwrite_values: dict | None = None) -> dict:
    """Measures losses of domains, scores on lm-eval tasks, or both.

    Args:
        input_args: Command line without the program's name; None reads ``sys.argv``.
        overwrite_values: Fields that win over the files.

    Returns:
        The results, see `evaluate_checkpoint`; rank 0 writes them to
        ``[<eval_results_prefix>_]eval_results_[<n>shot_]<time>.json``.
    """
    prepare_process()
    neox_args = NeoXArgs.consume_neox_args(overwrite_values=overwrite_values, input_args=input_args)
    config = resolve(neox_args, purpose=Purpose.READING)
    require_tasks(config.evaluation.tasks or (), config.evaluation.task_paths or ())
    from megatron.eval_tasks.checkpoint_evaluation import evaluate_checkpoint  # loads torch

    initialize_megatron(config, handle_signals=False)
    report = evaluate_checkpoint(config)
    shutdown()
    return report


if __name__ == "__main__":
    run_program(main)
