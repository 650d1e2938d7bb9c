import json
import os
import subprocess
import sys

import pytest

from megatron.neox_arguments import ConfigError, NeoXArgs, deepspeed_config, resolve
from megatron.neox_arguments.deepspeed_json import missing_monitor_problem

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


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"elasticity": {"enabled": True}}, "elasticity is not supported: batch sizes that "),
        ({"curriculum_learning": {}, "scheduler": {"type": "x"}}, "scheduler is not supported: "),
        ({"num_layers": 3}, "num_layers is no key; set num_layers itself"),
        ({"pipeline": {}}, "pipeline would replace a computed value; remove it"),
        ({"activation_checkpointing": 5}, "activation_checkpointing must be a section"),
        ({"compile": 5}, "compile must be a section (key: value pairs), got 5"),
    ],
)
def test_extra_keys_that_do_not_belong_there_are_refused(problem, extra, message):
    assert problem(deepspeed_extra_args=extra).startswith(f"deepspeed_extra_args.{message}")


def test_an_unknown_extra_key_is_refused_with_its_line_and_the_nearest_key(write, minimal):
    text = "".join(f"{key}: {value}\n" for key, value in minimal.items())
    path = write("a.yml", text + "deepspeed_extra_args: {hybrid_engin: {}}\n")
    with pytest.raises(ConfigError) as caught:
        resolve(NeoXArgs.from_ymls([path]))
    assert str(caught.value) == (
        f"{path}:7: unknown key 'deepspeed_extra_args.hybrid_engin'; did you mean 'hybrid_engine'?"
    )


def test_an_extra_key_without_effect_is_noted_and_left_out(make_config):
    config = make_config(deepspeed_extra_args={"aio": {"block_size": 1}})
    assert config.notes == (
        "'deepspeed_extra_args.aio' has no effect: nothing is offloaded to a disk",
    )
    assert deepspeed_config(config) == deepspeed_config(make_config())


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"tensorboard": {"foo": 1}},
            "unknown key 'tensorboard.foo'; known keys: enabled, job_name, output_path",
        ),
        ({"wandb": {"enable": True}}, "unknown key 'wandb.enable'; did you mean 'enabled'?"),
        ({"csv_monitor": {"enabled": 1}}, "csv_monitor.enabled must be true or false, got 1"),
        (
            {"flops_profiler": {"enabled": True, "profile_step": "x"}},
            "flops_profiler.profile_step must be a whole number, got 'x'",
        ),
    ],
)
def test_sections_for_deepspeed_are_checked(problem, section, message):
    assert problem(**section) == message


def test_values_of_sections_have_the_type_that_deepspeed_wants(make_config):
    config = make_config(flops_profiler={"profile_step": "5", "output_file": None})
    assert deepspeed_config(config)["flops_profiler"] == {"profile_step": 5}


def test_a_monitor_whose_package_is_not_there_is_told(make_config, monkeypatch):
    monkeypatch.setattr("megatron.neox_arguments.deepspeed_json.find_spec", lambda name: None)
    assert missing_monitor_problem(make_config(wandb={"enabled": False})) is None
    assert missing_monitor_problem(make_config(wandb={"enabled": True})) == (
        "wandb.enabled is true and the package wandb is not installed; install it, or remove the "
        "section wandb"
    )


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"comet": {"foo": 1}}, "comet: DeepSpeed refuses it: comet.foo: Extra inputs "),
        ({"compile": {}, "torch_autocast": {"dtype": 5}}, "torch_autocast: DeepSpeed refuses it: "),
    ],
)
def test_a_section_that_deepspeed_refuses_is_named(make_config, extra, expected):
    pytest.importorskip("deepspeed")
    from megatron.engine.build import _check_deepspeed_sections

    _check_deepspeed_sections(make_config(flops_profiler={"enabled": True}), None)
    with pytest.raises(ConfigError) as caught:
        _check_deepspeed_sections(make_config(deepspeed_extra_args=extra), None)
    assert str(caught.value).startswith(f"deepspeed_extra_args.{expected}")
    assert len(str(caught.value).splitlines()) == 1


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
        clips_in_runner = config.layout.zero_stage == 0 and config.precision.dtype == "fp32"
        assert result == [
            *(8, 4, 2, 0.0 if clips_in_runner else 1.0, config.layout.zero_stage),
            config.precision.dtype == "fp16",
            config.precision.dtype == "bfloat16",
            1_000_000_000,
        ]


@pytest.mark.parametrize(
    ("written", "passed"), [("fp32", "fp32"), ("BF16", "bf16"), ("bfp16", "bf16")]
)
def test_the_format_of_reduced_gradients_is_spelled_as_deepspeed_does(make_config, written, passed):
    result = deepspeed_config(make_config(communication_data_type=written))
    assert result["communication_data_type"] == passed


def test_two_formats_of_reduced_gradients_are_refused(problem, make_config):
    make_config(communication_data_type="fp32", fp32_allreduce=True)
    assert problem(communication_data_type="bf16", fp32_allreduce=True) == (
        "communication_data_type is bf16, and fp32_allreduce reduces in fp32; keep one"
    )


def test_another_format_of_reduced_gradients_is_refused(problem):
    assert problem(communication_data_type="fp8") == (
        "communication_data_type must be one of fp32, fp16, bf16, bfp16, got 'fp8'"
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
    assert any(note.startswith(f"'{key}' has no effect: ") for note in config.notes)
    assert deepspeed_config(config).get(key) == deepspeed_config(make_config()).get(key)
