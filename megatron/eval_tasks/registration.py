"""The model ``neox`` for lm-eval's own command; importing this module registers it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from lm_eval import utils
from lm_eval.api.registry import register_model

from megatron.eval_tasks.checkpoint_evaluation import make_adapter
from megatron.eval_tasks.eval_adapter import NeoXEvalAdapter
from megatron.evaluation.trained_model import open_checkpoint
from megatron.mpu.initialize import make_topology
from megatron.neox_arguments import ConfigError, NeoXArgs, resolve
from megatron.runtime.initialize import initialize_megatron, prepare_process

__all__ = ["CommandLineAdapter", "open_adapter"]

_FREE_BATCH_SIZES = (None, 1, "1", "auto")
"""What lm-eval's command passes if the user sets nothing."""


@register_model("neox")
class CommandLineAdapter(NeoXEvalAdapter):
    """A `NeoXEvalAdapter` that lm-eval's command can construct; see `open_adapter`."""

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict | None = None
    ) -> NeoXEvalAdapter:
        """As `create_from_arg_obj`, from a text ``key=value,key=value``."""
        arguments = utils.simple_parse_args_string(arg_string)
        return cls.create_from_arg_obj(arguments, additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict | None = None
    ) -> NeoXEvalAdapter:
        """Loads a model for lm-eval's own command."""
        return open_adapter(arg_dict, additional_config or {})


def open_adapter(arguments: Mapping[str, Any], surroundings: Mapping[str, Any]) -> NeoXEvalAdapter:
    """Starts this process as a rank of a configured run and loads the model; all ranks call it.

    Args:
        arguments: ``config``, the YAML files of the run, separated by `os.pathsep` (a colon);
            ``max_batch_tokens``, which overrides ``eval_batch_tokens``; all others are keys of the
            configuration, such as ``load``.
        surroundings: lm-eval's ``batch_size`` and ``max_batch_size``, which must have their
            defaults, since batches are cut by tokens. Its ``device`` is not used: by default it
            names a GPU, even on a machine without one.

    Raises:
        ConfigError: If the configuration or one of the arguments is wrong.
        CheckpointError: If there is no checkpoint.
    """
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


def _check(surroundings: Mapping[str, Any]) -> None:
    for name in ("batch_size", "max_batch_size"):
        if surroundings.get(name) not in _FREE_BATCH_SIZES:
            raise ConfigError(
                f"{name}: got {surroundings[name]}, but batches are cut by tokens; leave it out "
                "and give max_batch_tokens in model_args"
            )
