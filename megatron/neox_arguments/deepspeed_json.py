"""The configuration of `deepspeed.initialize`: every value explicit, DeepSpeed's defaults too."""

from __future__ import annotations

import copy
from typing import Any

from .errors import ConfigError
from .rules.precision import COMMUNICATION_FORMATS
from .run_config import RunConfig

PASSED_THROUGH = (
    "flops_profiler",
    "tensorboard",
    "wandb",
    "csv_monitor",
    "data_types",
)

NEVER_PRINT = 10**9
"""A period of DeepSpeed's own console line that is never reached."""


def deepspeed_config(config: RunConfig) -> dict[str, Any]:
    """Returns DeepSpeed's configuration for a run.

    There is no optimizer and no scheduler section: the program hands over torch objects.

    Raises:
        ConfigError: If `deepspeed_extra_args` repeats a key that is computed here.
    """
    section, derived = config.deepspeed, config.derived
    clips_in_runner = derived.zero_stage == 0 and derived.precision == "fp32"
    result: dict[str, Any] = {
        "train_batch_size": derived.train_batch_size,
        "train_micro_batch_size_per_gpu": derived.micro_batch_size,
        "gradient_accumulation_steps": derived.gradient_accumulation_steps,
        # without ZeRO in fp32 the runner clips: DeepSpeed would not tell the norm there
        "gradient_clipping": 0.0 if clips_in_runner else derived.gradient_clipping,
        "steps_per_print": NEVER_PRINT,
        # DeepSpeed would send each part of a tensor group a piece of an activation, which saves
        # bandwidth where all hold the same one; with sequence parallelism they do not
        "pipeline": {
            "pipe_partitioned": not config.parallelism.sequence_parallel,
            "grad_partitioned": not config.parallelism.sequence_parallel,
        },
        "wall_clock_breakdown": section.wall_clock_breakdown,
        "dump_state": False,
        "prescale_gradients": section.prescale_gradients,
        "gradient_predivide_factor": section.gradient_predivide_factor,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": dict(derived.zero_options),
        "fp16": {"enabled": derived.precision == "fp16", **derived.fp16_options},
        "bf16": {"enabled": derived.precision == "bfloat16"},
    }
    communication = "fp32" if section.fp32_allreduce else section.communication_data_type
    if communication is not None:
        result["communication_data_type"] = COMMUNICATION_FORMATS[communication.lower()]
    for key in PASSED_THROUGH:
        value = getattr(section, key)
        if value is not None:
            result[key] = copy.deepcopy(value)
    for key, value in (section.deepspeed_extra_args or {}).items():
        if key in result or key in ("optimizer", "scheduler"):
            raise ConfigError(
                f"deepspeed_extra_args.{key} would replace a computed value; set {key} itself"
            )
        result[key] = copy.deepcopy(value)
    return result
