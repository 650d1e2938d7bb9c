"""lm-eval's own command line, with models of this program.

    python -m megatron.eval_tasks run --model neox --model_args config=model.yml load=run --tasks x

lm-eval cannot find models in other packages, so this module imports ours and then calls lm-eval.
"""

from __future__ import annotations

import importlib
from typing import Any

from megatron.errors import TaskError
from megatron.eval_tasks.isolation import describe_failures, evaluate_each
from megatron.eval_tasks.surroundings import import_huggingface_evaluate, lm_eval_surroundings
from megatron.runtime.initialize import prepare_process

__all__ = ["main"]


def main() -> None:
    """Runs lm-eval's command, which then knows the model ``neox`` too.

    Raises:
        TaskError: If tasks failed, with one line per failed task; all other tasks have been
            evaluated before.
    """
    prepare_process()  # before something imports deepspeed
    with lm_eval_surroundings():
        from lm_eval.__main__ import cli_evaluate

        importlib.import_module("megatron.eval_tasks.registration")
        evaluator: Any = importlib.import_module("lm_eval.evaluator")
        import_huggingface_evaluate()
    failures: list[str] = []
    together = evaluator.evaluate

    def evaluate(*, task_dict: Any, **options: Any) -> dict[str, Any]:
        results = evaluate_each(together, task_dict, **options)
        failures.extend(describe_failures(results))
        return results

    evaluator.evaluate = evaluate  # the function that its command calls
    cli_evaluate()
    if failures:
        raise TaskError(*failures)
