"""The configuration of `deepspeed.initialize`: every value explicit, DeepSpeed's defaults too."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from .coerce import coerce
from .errors import ConfigError
from .rules.deepspeed import EXTRA_KEYS, SECTION_KEYS, typed_section
from .run_config import RunConfig
from .secrets import LEFT_OUT, REDACTED, referenced_variable, with_secrets_as

_MONITOR_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "comet": "comet_ml"}
"""What DeepSpeed's monitors import, by section."""

NEVER_PRINT = 10**9
"""A period of DeepSpeed's own console line that is never reached."""


def deepspeed_config(config: RunConfig) -> dict[str, Any]:
    """Returns DeepSpeed's configuration for a run.

    There is no optimizer and no scheduler section: the program hands over torch objects. Secrets
    are in it, those that name an environment variable with its value: it is not to be written.
    """
    layout, batch, precision = config.layout, config.batch, config.precision
    clips_in_runner = layout.zero_stage == 0 and precision.dtype == "fp32"
    result: dict[str, Any] = {
        "train_batch_size": batch.train_batch_size,
        "train_micro_batch_size_per_gpu": batch.micro_batch_size,
        "gradient_accumulation_steps": batch.gradient_accumulation_steps,
        # without ZeRO in fp32 the runner clips: DeepSpeed would not tell the norm there
        "gradient_clipping": 0.0 if clips_in_runner else config.optimizer.gradient_clipping,
        "steps_per_print": NEVER_PRINT,
        # DeepSpeed would send each part of a tensor group a piece of an activation, which saves
        # bandwidth where all hold the same one; with sequence parallelism they do not
        "pipeline": {
            "pipe_partitioned": not layout.sequence_parallel,
            "grad_partitioned": not layout.sequence_parallel,
        },
        "wall_clock_breakdown": config.logging.wall_clock_breakdown,
        "dump_state": False,
        "prescale_gradients": precision.prescale_gradients,
        "gradient_predivide_factor": precision.gradient_predivide_factor,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": dict(layout.zero_options),
        "fp16": {"enabled": precision.dtype == "fp16", **precision.fp16_options},
        "bf16": {"enabled": precision.dtype == "bfloat16"},
    }
    if precision.communication_data_type is not None:
        result["communication_data_type"] = precision.communication_data_type
    for key, name, value in _passed_through(config):
        result[key] = with_secrets(value, os.environ, name=name)
    return result


def _passed_through(config: RunConfig) -> Iterator[tuple[str, str, Any]]:
    """What DeepSpeed gets as the user wrote it: a key, its name in messages, and its value."""
    sections = {
        "flops_profiler": config.logging.flops_profiler,
        "tensorboard": config.logging.tensorboard,
        "wandb": config.logging.wandb,
        "csv_monitor": config.logging.csv_monitor,
        "data_types": config.precision.data_types,
    }
    for key, section in sections.items():
        if section is not None:
            yield key, key, typed_section(key, section) if key in SECTION_KEYS else section
    for key, value in (config.launch.deepspeed_extra_args or {}).items():
        if key in EXTRA_KEYS:  # others were refused, or have no effect
            yield key, f"deepspeed_extra_args.{key}", coerce(value, EXTRA_KEYS[key])


def passed_sections(config: RunConfig) -> dict[str, str]:
    """Keys of ``deepspeed_config`` that the user wrote, with their names in a message."""
    return {key: name for key, name, value in _passed_through(config) if value != {}}


def missing_monitor_problem(config: RunConfig) -> str | None:
    """Returns what is wrong when the package of an enabled monitor of DeepSpeed is not there."""
    sections = deepspeed_config(config)
    for key, package in _MONITOR_PACKAGES.items():
        if sections.get(key, {}).get("enabled") and find_spec(package) is None:
            fault = f"is true and the package {package} is not installed"
            name = passed_sections(config)[key]
            return f"{name}.enabled {fault}; install it, or remove the section {key}"
    return None


def missing_optimizer_problem(config: RunConfig) -> str | None:
    """Returns what is wrong when the package of the 8-bit optimizer is not there."""
    if not config.optimizer.use_bnb_optimizer or find_spec("bitsandbytes") is not None:
        return None
    fault = "is true and the package bitsandbytes is not installed"
    return f"use_bnb_optimizer {fault}; install it, or remove the key"


def with_secrets(value: Any, environ: Mapping[str, str], *, name: str) -> Any:
    """Returns a section for the library that it is meant for.

    Args:
        value: As the user wrote it, or a redacted copy, whose secrets are left out.
        environ: Gives the values of ``${NAME}`` and ``$NAME``.
        name: Of ``value``, for messages.

    Raises:
        ConfigError: If such a variable is not set.
    """

    def filled(item: Any, place: str) -> Any:
        if item == REDACTED:
            return LEFT_OUT
        variable = referenced_variable(item)
        if variable is not None and variable not in environ:
            raise ConfigError(
                f"{place}: takes its value from the environment variable {variable}, which is not "
                "set; set it, or remove the key"
            )
        return item if variable is None else environ[variable]

    return with_secrets_as(value, filled, name)
