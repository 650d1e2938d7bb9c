"""lm-eval's own command line on models of this program.

    python -m megatron.eval_tasks run --model neox --model_args config=model.yml load=run --tasks x

lm-eval has no way to find models in other packages, so this imports ours and calls lm-eval.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron.data.errors import DataError
from megatron.eval_tasks.isolation import describe_failures, evaluate_each
from megatron.eval_tasks.surroundings import lm_eval_surroundings
from megatron.neox_arguments import ConfigError, NeoXArgs, RunConfig, resolve
from megatron.runtime.initialize import initialize_megatron, prepare_process

if TYPE_CHECKING:
    from megatron.eval_tasks.eval_adapter import NeoXEvalAdapter

__all__ = ["chat_folder", "main", "open_adapter"]

_FREE_BATCH_SIZES = (None, 1, "1", "auto")
"""What lm-eval's command hands over where the user does not say anything."""


def main() -> None:
    """Runs lm-eval's command with the model ``neox`` among its models.

    Raises:
        DataError: After all others have their results, with a line for each task that has failed.
    """
    prepare_process()  # before something imports deepspeed
    with lm_eval_surroundings():
        from lm_eval.__main__ import cli_evaluate

        importlib.import_module("megatron.eval_tasks.eval_adapter")  # registers itself
        evaluator: Any = importlib.import_module("lm_eval.evaluator")
        importlib.import_module("evaluate")  # Hugging Face's, before our script is found instead
    failures: list[str] = []
    together = evaluator.evaluate

    def evaluate(*, task_dict: Any, **options: Any) -> dict[str, Any]:
        results = evaluate_each(together, task_dict, **options)
        failures.extend(describe_failures(results))
        return results

    evaluator.evaluate = evaluate  # what its command calls
    cli_evaluate()
    if failures:
        raise DataError("\n".join(failures))


def open_adapter(arguments: Mapping[str, Any], surroundings: Mapping[str, Any]) -> NeoXEvalAdapter:
    """Joins the run that a configuration describes and loads its model; all ranks call it.

    Args:
        arguments: ``config``, the YAML files of the run, separated by `os.pathsep` (a colon);
            ``max_batch_tokens``, which wins over ``eval_batch_tokens``; all others are keys of the
            configuration, such as ``load``.
        surroundings: lm-eval's ``batch_size`` and ``max_batch_size``, which must be left alone,
            since batches are cut by tokens. Its ``device`` is not read: it names a GPU on every
            machine where the user says nothing.

    Raises:
        ConfigError: If the configuration or one of these is wrong.
        CheckpointError: If there is no checkpoint.
    """
    from megatron.eval_tasks.checkpoint_evaluation import make_adapter
    from megatron.evaluation.trained_model import open_checkpoint
    from megatron.mpu.initialize import make_topology

    values = dict(arguments)
    files = values.pop("config", None)
    max_batch_tokens = values.pop("max_batch_tokens", None)
    if not files:
        raise ConfigError(
            "model_args: config is missing; give the YAML files of the run, as in "
            f"config=model.yml{os.pathsep}data.yml"
        )
    _check(surroundings)
    prepare_process()
    config = resolve(NeoXArgs.from_ymls(str(files).split(os.pathsep), values))
    initialize_megatron(config, handle_signals=False)
    loaded = open_checkpoint(config, make_topology(config, for_training=False))
    return make_adapter(loaded, config, max_batch_tokens=max_batch_tokens)


def chat_folder(config: RunConfig) -> Path | None:
    """Where a run's chat template would be; None where the tokenizer is a name on the Hub."""
    path = Path(config.data.vocab_file or "")
    if not config.data.vocab_file or not path.exists():
        return None
    return path if path.is_dir() else path.parent


def _check(surroundings: Mapping[str, Any]) -> None:
    for name in ("batch_size", "max_batch_size"):
        if surroundings.get(name) not in _FREE_BATCH_SIZES:
            raise ConfigError(
                f"{name}: got {surroundings[name]}, but batches are cut by tokens; leave it out "
                "and give max_batch_tokens in model_args"
            )
