#!/usr/bin/env python
"""Evaluates a checkpoint on every domain: ``./deepy.py evaluate.py model.yml data.yml``."""

from __future__ import annotations

import datetime
from pathlib import Path

from megatron.entry_point import run_program
from megatron.initialize import initialize_megatron, prepare_process, shutdown
from megatron.neox_arguments import ConfigError, NeoXArgs, resolve

SPLITS = {"valid": "validation", "test": "test"}


def main(input_args: list[str] | None = None, overwrite_values: dict | None = None) -> dict:
    """Evaluates the validation and the test set of each domain.

    Args:
        input_args: Command line without the program's name; None reads ``sys.argv``.
        overwrite_values: Fields that win over the files.

    Returns:
        {"validation" | "test": {"domains": ..., "averages": ...}}, also written by rank 0 to
        ``[<eval_results_prefix>_]eval_results_<time>.json``.
    """
    info = prepare_process()
    neox_args = NeoXArgs.consume_neox_args(overwrite_values=overwrite_values, input_args=input_args)
    config = resolve(neox_args)
    if config.text_generation.eval_tasks:
        raise ConfigError(
            "eval_tasks: this version evaluates the domains of the data only, not lm-eval tasks; "
            "remove eval_tasks"
        )
    from megatron.evaluation import evaluate_splits
    from megatron.files import write_json_atomic

    initialize_megatron(config, handle_signals=False)
    results = evaluate_splits(config, SPLITS)
    if info.rank == 0:
        moment = datetime.datetime.now().strftime("%m-%d-%Y-%H-%M-%S")
        prefix = config.text_generation.eval_results_prefix
        name = f"{prefix}_eval_results_{moment}.json" if prefix else f"eval_results_{moment}.json"
        write_json_atomic(Path(name), results)
        print(f"results in {name}")  # noqa: T201
    shutdown()
    return results


if __name__ == "__main__":
    run_program(main)
