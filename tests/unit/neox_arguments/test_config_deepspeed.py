import json
import os
import subprocess
import sys

import pytest

from megatron.neox_arguments import ConfigError, deepspeed_config

READ = """
import json, os, sys
os.environ["DS_ACCELERATOR"] = "cpu"
from deepspeed.runtime.config import DeepSpeedConfig
results = []
for values in json.load(sys.stdin):
    config = DeepSpeedConfig(values)
    results.append([config.train_batch_size, config.train_micro_batch_size_per_gpu,
                    config.gradient_accumulation_steps, config.gradient_clipping,
                    config.zero_optimization_stage, config.float16_config.enabled,
                    config.bfloat16_config.enabled, config.steps_per_print])
print("RESULT " + json.dumps(results))
"""


def test_every_value_is_written_out(make_config):
    assert deepspeed_config(make_config(world_size=2, gradient_accumulation_steps=3)) == {
        "train_batch_size": 24,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 3,
        "gradient_clipping": 0.0,
        "steps_per_print": 1_000_000_000,
        "pipeline": {"pipe_partitioned": True, "grad_partitioned": True},
        "wall_clock_breakdown": False,
        "dump_state": False,
        "prescale_gradients": False,
        "gradient_predivide_factor": 1.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": 0,
            "contiguous_gradients": True,
            "reduce_scatter": True,
            "reduce_bucket_size": 500_000_000,
            "allgather_partitions": True,
            "allgather_bucket_size": 500_000_000,
            "overlap_comm": False,
        },
        "fp16": {"enabled": False},
        "bf16": {"enabled": False},
    }


def test_sections_are_passed_through_and_extra_ones_added(make_config):
    config = make_config(
        comms_logger={"enabled": True},
        fp32_allreduce=True,
        deepspeed_extra_args={"hybrid_engine": {"enabled": False}},
    )
    result = deepspeed_config(config)
    assert result["comms_logger"] == {"enabled": True}
    assert result["communication_data_type"] == "fp32"
    assert result["hybrid_engine"] == {"enabled": False}


@pytest.mark.parametrize("key", ["gradient_clipping", "optimizer", "fp16"])
def test_extra_sections_may_not_replace_computed_values(make_config, key):
    config = make_config(deepspeed_extra_args={key: 1})
    with pytest.raises(ConfigError) as caught:
        deepspeed_config(config)
    assert str(caught.value) == (
        f"deepspeed_extra_args.{key} would replace a computed value; set {key} itself"
    )


def test_the_result_is_not_shared_with_the_configuration(make_config):
    config = make_config(data_types={"grad_accum_dtype": "fp32"})
    deepspeed_config(config)["data_types"]["grad_accum_dtype"] = "bf16"
    assert deepspeed_config(config)["data_types"] == {"grad_accum_dtype": "fp32"}


def test_deepspeed_accepts_it_for_every_precision_and_stage(make_config):
    pytest.importorskip("deepspeed")
    cases = [
        {"zero_optimization": {"stage": stage}, **precision}
        for stage in range(4)
        for precision in ({}, {"bf16": {"enabled": True}}, {"precision": "fp16"})
    ]
    configs = [make_config(gradient_accumulation_steps=2, **case) for case in cases]
    process = subprocess.run(
        [sys.executable, "-c", READ],
        input=json.dumps([deepspeed_config(config) for config in configs]),
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.returncode == 0, process.stderr[-2000:]
    line = next(row for row in process.stdout.splitlines() if row.startswith("RESULT "))
    for config, result in zip(configs, json.loads(line[len("RESULT ") :]), strict=True):
        derived = config.derived
        clips_in_runner = derived.zero_stage == 0 and derived.precision == "fp32"
        assert result == [
            *(8, 4, 2, 0.0 if clips_in_runner else 1.0, derived.zero_stage),
            derived.precision == "fp16",
            derived.precision == "bfloat16",
            1_000_000_000,
        ]
