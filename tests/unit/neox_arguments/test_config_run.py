import json
import pickle

import pytest
import yaml

from megatron.neox_arguments import NeoXArgs, require_training_data, resolve
from megatron.neox_arguments.errors import ConfigError


def saved_steps(config, last):
    saving, last_step = config.saving, config.schedule.train_iters
    return [step for step in range(last + 1) if saving.is_save_step(step, last_step=last_step)]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"checkpoint_factor": 40}, [40, 80, 100]),
        ({"save_interval": 40}, [40, 80, 100]),
        ({"checkpoint_factor": 3, "checkpoint_scale": "log"}, [1, 3, 9, 27, 81, 100]),
        ({"checkpoint_factor": 2.5, "checkpoint_scale": "log"}, [1, 2, 6, 15, 39, 97, 100]),
        ({"extra_save_iters": [7, 0, 7]}, [0, 7, 100]),
        ({"save_iters": [7]}, [7, 100]),
        ({"checkpoint_factor": 50, "extra_save_iters": [3]}, [3, 50, 100]),
    ],
)
def test_checkpoints_fall_on_the_steps_of_their_keys_and_on_the_last(make_config, keys, expected):
    assert saved_steps(make_config(save="out", **keys), 100) == expected


def test_without_a_folder_nothing_is_saved(make_config):
    assert saved_steps(make_config(checkpoint_factor=10), 100) == []


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            {"save": "x"},
            "save is set, but neither checkpoint_factor nor extra_save_iters is; set one of them",
        ),
        (
            {"checkpoint_factor": 0.5},
            "checkpoint_factor must be a whole number of at least 1, got 0.5",
        ),
        (
            {"checkpoint_factor": 1, "checkpoint_scale": "log"},
            "checkpoint_factor must be above 1 with checkpoint_scale log, got 1",
        ),
        (
            {"save_interval": 5, "checkpoint_scale": "log"},
            "save_interval is linear, checkpoint_scale is 'log'; keep one",
        ),
        ({"extra_save_iters": [-1]}, "extra_save_iters must be at least 0, got [-1]"),
        (
            {"train_iters": None},
            "train_iters is required; set the number of optimizer steps, or train_epochs",
        ),
        ({"train_iters": 0}, "train_iters must be at least 1, got 0"),
        ({"log_interval": 0}, "log_interval must be at least 1, got 0"),
        ({"eval_interval": 0}, "eval_interval must be at least 1, got 0"),
        ({"eval_iters": -1}, "eval_iters must be at least 0, got -1"),
        ({"keep_last_n_checkpoints": 0}, "keep_last_n_checkpoints must be at least 1, got 0"),
    ],
)
def test_wrong_runs_are_refused(problem, keys, expected):
    assert problem(**keys) == expected


def test_logs_stand_beside_checkpoints_unless_told_otherwise(make_config):
    assert make_config(save="out", checkpoint_factor=1).logging.log_dir == "out/logs"
    assert make_config(save="out", checkpoint_factor=1, log_dir="x").logging.log_dir == "x"
    assert make_config().logging.log_dir is None


def test_every_problem_is_told_at_once(problems):
    keys = {"seed": 0, "warmup": 2, "hidden_size": 66, "data_path": "x", "split": "z", "top_k": -1}
    assert len(problems(**keys)) == 5


def test_the_resolved_configuration_is_frozen_plain_and_picklable(make_config):
    config = make_config(world_size=2, bf16={"enabled": True})
    with pytest.raises(AttributeError):
        config.schedule.train_iters = 5
    with pytest.raises(AttributeError):
        config.model.hidden_size = 5
    assert pickle.loads(pickle.dumps(config)) == config
    plain = json.loads(json.dumps(config.to_dict()))
    assert plain["version"] == 2
    assert plain["batch"]["train_batch_size"] == 8
    assert plain["model"]["hidden_size"] == 64
    assert "files" not in plain


def test_resolving_twice_gives_equal_results(make_config):
    assert make_config(2, seed=5) == make_config(2, seed=5)


def test_training_without_data_is_refused_when_asked(make_config):
    with pytest.raises(ConfigError, match="there is no training data"):
        require_training_data(make_config())
    require_training_data(make_config(data_path="d/text"))


def test_old_names_are_read_as_the_new_ones_and_noted(make_config):
    config = make_config(
        train_micro_batch_size_per_gpu=None,
        batch_size=2,
        gas=3,
        clip_grad=0.5,
        train_data_path="a/x/t",
        valid_data_path=["a/x/t"],
        test_data_path="a/x/t",
    )
    assert config.batch.train_batch_size == 6
    assert config.batch.gradient_accumulation_steps == 3
    assert config.optimizer.gradient_clipping == 0.5
    assert config.data.train_paths == ("a/x/t",)
    assert "'gas' is an old name; read as 'gradient_accumulation_steps'" in config.notes
    assert len(config.notes) == 6


def test_an_old_name_may_not_contradict_the_new_one(make_config, problem):
    make_config(gas=2, gradient_accumulation_steps=2)
    assert problem(gas=2, gradient_accumulation_steps=3) == (
        "gas is an old name of gradient_accumulation_steps, and they differ: 2 and 3; "
        "keep gradient_accumulation_steps"
    )


REFUSED = [
    ("scheduler", {"type": "WarmupLR", "params": {}}),
    ("sparse_gradients", True),
    ("sparse_attention", {"mode": "fixed"}),
    ("amp", {"enabled": True}),
    ("curriculum_learning", {"enabled": True}),
    ("data_efficiency", {"enabled": True}),
    ("elasticity", {"enabled": True}),
    ("autotuning", {"enabled": True}),
    ("autotuning_run", "tune"),
    ("compression_training", {"weight_quantization": {}}),
    ("load_universal", True),
    ("moe_num_experts", 8),
    ("te_mha", True),
    ("use_mup", True),
    ("use_comet", True),
    ("train_impl", "dpo"),
    ("pack_impl", "unpacked"),
    ("lazy_mpu_init", True),
    ("adlr_autoresume", True),
    ("tokenizer", "x"),
    ("pos_train_data_paths", ["x"]),
    ("dpo_beta", 0.2),
    ("serve_model_weights", True),
    ("dataset_impl", "online"),
]


@pytest.mark.parametrize(("key", "value"), REFUSED)
def test_what_cannot_be_honoured_is_refused_with_the_reason(problem, key, value):
    message = problem(**{key: value})
    assert message.startswith(key)
    assert "not supported: " in message
    assert "; remove" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("amp", {"enabled": False}),
        ("soft_prompt_tuning", {"enabled": False}),
        ("moe_num_experts", 1),
        ("use_comet", False),
        ("sparse_attention", {}),
        ("scheduler", {}),
    ],
)
def test_what_is_switched_off_is_accepted(make_config, key, value):
    assert make_config(**{key: value}).notes == ()


@pytest.mark.parametrize(
    ("key", "value", "note"),
    [
        ("rank", 3, "'rank' has no effect: the launcher's environment says it"),
        (
            "loss_scale",
            128,
            "'loss_scale' has no effect: it belongs to fp16, and precision is fp32",
        ),
        ("hysteresis", 3, "'hysteresis' has no effect: it belongs to fp16, and precision is fp32"),
        ("gpt_j_tied", True, "'gpt_j_tied' has no effect: gpt_j_residual is false"),
        ("rope_fusion", True, "'rope_fusion' has no effect: torch's kernels are used"),
        (
            "fp16_lm_cross_entropy",
            True,
            "'fp16_lm_cross_entropy' has no effect: the loss is always computed in float32",
        ),
        (
            "moe_top_k",
            2,
            "'moe_top_k' has no effect: it belongs to moe_num_experts, which this version does not "
            "support",
        ),
    ],
)
def test_hints_are_noted_once(make_config, key, value, note):
    assert make_config(**{key: value}).notes == (note,)


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("attention_type: groupedquery", "num_kv_heads"),
        ("decay_lr_to: 0.033", "min_lr"),
        ("warmup_iters: 500", "warmup is the share"),
        ("autotuning_config: {enabled: true}", "autotuner"),
    ],
)
def test_stray_keys_of_published_files_are_noted(write, minimal, line, instead):
    path = write("a.yml", yaml.safe_dump(minimal) + line)
    (note,) = resolve(NeoXArgs.from_ymls([path])).notes
    assert note.startswith(f"'{line.split(':')[0]}' has no effect: ")
    assert instead in note


def test_a_hint_with_its_default_is_not_noted(make_config):
    assert make_config(rope_fusion=False, num_workers=2).notes == ()


def test_a_padded_vocabulary_beside_a_tokenizer_is_noted(make_config):
    assert make_config(padded_vocab_size=5).notes == ()
    assert make_config(padded_vocab_size=5, vocab_file="t.json").notes == (
        "'padded_vocab_size' has no effect: it is computed from the tokenizer",
    )


DEFAULTS_OF_GPT_NEOX = {
    "fused_kernels_build_path": None,
    "serve_model_weights": False,
    "weight_server_port": 6000,
    "online_dataserver_ips": "localhost",
    "online_dataserver_ports": 10000,
    "moe_expert_interval": 1,
    "moe_router_type": "sinkhorn",
    "dataset_impl": "gpt2",
}


def test_the_defaults_of_gpt_neox_are_accepted_when_they_are_written_out(make_config):
    assert make_config(**DEFAULTS_OF_GPT_NEOX).notes == ()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("fused_kernels_build_path", "build/kernels"),
        ("weight_server_port", [6000, 6001]),
        ("online_dataserver_ports", 10001),
        ("moe_expert_interval", 2),
        ("dim_att", 64),
        ("head_size", 16),
        ("ffn_dim", 256),
    ],
)
def test_a_key_of_what_is_not_built_is_noted(make_config, key, value):
    (note,) = make_config(**{key: value}).notes
    assert note.startswith(f"'{key}' has no effect: ")


def test_retired_keys_and_broken_rules_are_told_in_one_round(problems):
    found = problems(use_mup=True, amp={"enabled": True}, pos_train_data_paths=["x"], warmup=7)
    assert sorted(message.split()[0].strip(":") for message in found) == [
        *("amp", "pos_train_data_paths", "use_mup", "warmup")
    ]


def test_refusals_name_the_line(write, minimal):
    path = write("a.yml", yaml.safe_dump(minimal) + "use_mup: true\n")
    with pytest.raises(ConfigError, match=rf"^{path}:7: use_mup: True is not supported: "):
        resolve(NeoXArgs.from_ymls([path]))
