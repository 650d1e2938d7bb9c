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
        flops_profiler={"enabled": True},
        fp32_allreduce=True,
        deepspeed_extra_args={"hybrid_engine": {"enabled": False}},
    )
    result = deepspeed_config(config)
    assert result["flops_profiler"] == {"enabled": True}
    assert result["communication_data_type"] == "fp32"
    assert result["hybrid_engine"] == {"enabled": False}


@pytest.mark.parametrize("key", ["gradient_clipping", "optimizer", "fp16"])
def test_extra_sections_may_not_replace_computed_values(make_config, key):
    with pytest.raises(ConfigError) as caught:
        make_config(deepspeed_extra_args={key: 1})
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


@pytest.mark.parametrize(
    ("written", "passed"), [("fp32", "fp32"), ("BF16", "bf16"), ("bfp16", "bf16")]
)
def test_the_format_of_reduced_gradients_is_spelled_as_deepspeed_does(make_config, written, passed):
    result = deepspeed_config(make_config(communication_data_type=written))
    assert result["communication_data_type"] == passed


def test_another_format_of_reduced_gradients_is_refused(problem):
    assert problem(communication_data_type="fp8") == (
        "communication_data_type must be fp32, fp16 or bf16, got 'fp8'"
    )


@pytest.mark.parametrize("section", [{"grad_accum_dtype": "fp32"}, {"grad_accum_dtype": None}, {}])
def test_the_format_of_accumulated_gradients_is_passed_on(make_config, section):
    assert deepspeed_config(make_config(data_types=section))["data_types"] == section


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"grad_accum_dtype": "fp8"}, "grad_accum_dtype must be fp32, fp16 or bf16, got 'fp8'"),
        ({"grad_acum_dtype": "fp32"}, "unknown key 'data_types.grad_acum_dtype'"),
        ({"grad_accum_dtype": "bf16"}, "does not work with fp32 weights and ZeRO 0"),
    ],
)
def test_another_format_of_accumulated_gradients_is_refused(problem, section, message):
    assert message in problem(data_types=section)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("dump_state", True), ("comms_logger", {"enabled": True}), ("aio", {"block_size": 1})),
        ("zero_allow_untested_optimizer", False),
    ],
)
def test_what_deepspeed_would_not_show_is_noted_and_left_out(make_config, key, value):
    config = make_config(**{key: value})
    assert any(note.startswith(f"'{key}' has no effect: ") for note in config.derived.notes)
    assert deepspeed_config(config).get(key) == deepspeed_config(make_config()).get(key)
