import pytest

from megatron.neox_arguments import deepspeed_config

HALF = "starts Adam one step ahead in half precision"


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, "fp32"),
        ({"precision": "fp32"}, "fp32"),
        ({"precision": "FP16"}, "fp16"),
        ({"precision": "bfloat16"}, "bfloat16"),
        ({"fp16": {"enabled": True}}, "fp16"),
        ({"fp16": {"fp16": True, "enabled": True}}, "fp16"),
        ({"fp16": {"enabled": True, "type": "bfloat16"}}, "bfloat16"),
        ({"bf16": {"enabled": True}}, "bfloat16"),
        ({"bf16": {"enabled": True}, "precision": "bfloat16"}, "bfloat16"),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": False}}, "bfloat16"),
        ({"bf16": {"enabled": False}}, "fp32"),
    ],
)
def test_the_precision_comes_from_any_of_its_spellings(make_config, keys, expected):
    assert make_config(**keys).precision.dtype == expected


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            {"bf16": {"enabled": True}, "fp16": {"enabled": True}},
            "fp16.enabled gives fp16 but bf16.enabled gives bfloat16; keep one of them",
        ),
        (
            {"bf16": {"enabled": True}, "precision": "fp32"},
            "bf16.enabled gives bfloat16 but precision is fp32; keep one of them",
        ),
        ({"fp16": {"loss_scale": 0}}, "fp16 needs 'enabled: true' or 'enabled: false'"),
        ({"fp16": {"enabled": "yes"}}, "fp16.enabled must be true or false, got 'yes'"),
        (
            {"fp16": {"enabled": True, "los_scale": 1}},
            "unknown key 'fp16.los_scale'; did you mean 'loss_scale'?",
        ),
        (
            {"fp16": {"enabled": True, "hysteresis": "x"}},
            "fp16.hysteresis must be a number, at least 0, got 'x'",
        ),
        (
            {"fp16": {"enabled": True, "loss_scale": -1}},
            "fp16.loss_scale must be a number, at least 0, got -1",
        ),
    ],
)
def test_contradicting_or_wrong_precision_is_refused(problem, keys, expected):
    assert problem(**keys) == expected


def test_the_loss_scale_follows_the_section_then_the_outer_keys(make_config):
    section = {"enabled": True, "loss_scale": "1e3", "hysteresis": 4}
    options = make_config(fp16=section, min_loss_scale=2, hysteresis=9).precision.fp16_options
    assert options == {
        "loss_scale": 1000.0,
        "initial_scale_power": 16,
        "loss_scale_window": 1000,
        "hysteresis": 4,
        "consecutive_hysteresis": False,
        "min_loss_scale": 2,
        "auto_cast": False,
    }
    assert make_config(precision="fp16").precision.fp16_options["loss_scale"] == 0
    assert make_config().precision.fp16_options == {}


@pytest.mark.parametrize(
    ("stage", "keys", "effective"),
    [
        (0, {}, 0),
        (3, {}, 3),
        (0, {"bf16": {"enabled": True}}, 1),
        (0, {"precision": "fp16"}, 1),
        (2, {"bf16": {"enabled": True}}, 2),
    ],
)
def test_half_precision_without_zero_is_run_as_zero_1(make_config, stage, keys, effective):
    config = make_config(zero_optimization={"stage": stage}, **keys)
    assert config.layout.zero_stage == config.layout.zero_options["stage"] == effective
    assert any(HALF in note for note in config.notes) == (stage != effective)


def test_zero_options_are_kept_and_completed(make_config):
    section = {"stage": 1, "reduce_bucket_size": "5e7", "cpu_offload": False}
    section |= {"offload_optimizer": {"device": "none"}, "stage3_max_live_parameters": 5}
    assert make_config(zero_optimization=section).layout.zero_options == {
        "stage": 1,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": 50_000_000,
        "allgather_partitions": True,
        "allgather_bucket_size": 500_000_000,
        "overlap_comm": False,
    }


def test_the_copies_of_zero_keys_stand_in_for_the_section(make_config, problem):
    config = make_config(zero_stage=2, zero_reduce_bucket_size=100)
    assert (config.layout.zero_stage, config.layout.zero_options["reduce_bucket_size"]) == (2, 100)
    assert problem(zero_stage=2, zero_optimization={"stage": 1}) == (
        "zero_stage is 2, zero_optimization.stage is 1; keep one"
    )


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"stage": 4}, "zero_optimization.stage must be a whole number, 0 to 3, got 4"),
        ({"stage": True}, "zero_optimization.stage must be a whole number, 0 to 3, got True"),
        (
            {"stage": 1, "reduce_scater": True},
            "unknown key 'zero_optimization.reduce_scater'; did you mean 'reduce_scatter'?",
        ),
        (
            {"stage": 2, "cpu_offload": True},
            "zero_optimization: offloading to the CPU or NVMe is not part of this version; "
            "remove cpu_offload, offload_optimizer and offload_param",
        ),
    ],
)
def test_wrong_zero_sections_are_refused(problem, section, expected):
    assert problem(zero_optimization=section) == expected


def test_offloading_of_either_kind_is_refused(problems):
    for key in ("offload_optimizer", "offload_param"):
        assert problems(zero_optimization={"stage": 3, key: {"device": "cpu"}})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"reduce_bucket_size": "many"}, "reduce_bucket_size must be a whole number, at least 1"),
        ({"reduce_bucket_size": 0}, "reduce_bucket_size must be a whole number, at least 1"),
        ({"allgather_bucket_size": 0.5}, "allgather_bucket_size must be a whole number"),
        ({"overlap_comm": 1}, "overlap_comm must be true or false, got 1"),
        ({"stage3_max_live_parameters": -1}, "must be a whole number, at least 0"),
        ({"stage3_max_live_parameters": float("inf")}, "contains inf; write a finite number"),
        ({"offload_optimizer": True}, "offloading to the CPU or NVMe is not part of this version"),
        ({"offload_param": "cpu"}, "offloading to the CPU or NVMe is not part of this version"),
    ],
)
def test_a_zero_section_that_deepspeed_could_not_take_is_refused(problem, section, message):
    assert message in problem(zero_optimization={"stage": 1, **section})


def test_numeric_text_and_null_in_sections_are_numbers_and_defaults(make_config):
    written = {"stage": "1", "reduce_bucket_size": "5e8", "overlap_comm": None}
    config = make_config(
        zero_optimization={**written, "offload_param": {"device": "none"}},
        fp16={"enabled": True, "hysteresis": None, "loss_scale": None, "type": None},
        optimizer={"type": "Adam", "params": {"lr": "1e-4", "betas": None, "eps": None}},
    )
    assert config.layout.zero_stage == 1
    assert type(config.layout.zero_stage) is int
    assert config.layout.zero_options["reduce_bucket_size"] == 500_000_000
    assert config.layout.zero_options["overlap_comm"] is False
    assert (
        config.precision.fp16_options["hysteresis"],
        config.precision.fp16_options["loss_scale"],
    ) == (2, 0)
    assert (config.optimizer.betas, config.optimizer.eps) == ((0.9, 0.999), 1e-8)


def test_an_unknown_half_precision_is_refused(problem):
    assert problem(fp16={"enabled": True, "type": "fp8"}) == (
        "fp16.type must be one of fp16, float16, bfloat16, bf16, got 'fp8'"
    )


@pytest.mark.parametrize("value", [float("inf"), float("nan"), True])
def test_numbers_of_the_loss_scale_are_finite(problem, value):
    message = problem(fp16={"enabled": True, "loss_scale_window": value})
    assert message.startswith("fp16.loss_scale_window ")
    assert message.endswith(
        "must be a number, at least 0, got True"
        if value is True
        else f"contains {value}; write a finite number"
    )


BF16_OF_GPT_NEOX = {
    "bf16": True,
    "enabled": True,
    "loss_scale": 0,
    "loss_scale_window": 1000,
    "initial_scale_power": 12,
    "hysteresis": 2,
    "min_loss_scale": 1,
}


def test_a_bf16_section_with_the_keys_of_fp16_loads_with_one_note(make_config):
    config = make_config(bf16=BF16_OF_GPT_NEOX, zero_stage=1)
    assert config.precision.dtype == "bfloat16"
    (note,) = config.notes
    for key in BF16_OF_GPT_NEOX.keys() - {"bf16", "enabled"}:
        assert f"bf16.{key}" in note
    assert deepspeed_config(config)["bf16"] == {"enabled": True}


def test_an_unknown_key_of_a_bf16_section_is_still_refused(problem):
    assert "unknown key 'bf16.loss_scal'" in problem(bf16={"enabled": True, "loss_scal": 0})
