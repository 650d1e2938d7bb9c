import copy
import dataclasses
import pickle

import pytest
import yaml

from megatron.neox_arguments import ConfigError, NeoXArgs, resolve


def test_values_are_held_exactly_as_written(write, minimal):
    written = {
        **minimal,
        "optimizer": {"type": "adam", "params": {"lr": "6e-4", "eps": "1e-8"}},
        "tokenizer_type": "hftokenizer",
        "min_lr": "1e-5",
        "gas": 2,
        "fp16": {"fp16": True, "enabled": False},
        "zero_optimization": {"stage": 0, "cpu_offload": False},
    }
    args = NeoXArgs.from_ymls([write("a.yml", yaml.safe_dump(written))])
    before = copy.deepcopy(args)
    config = resolve(args)
    assert {key: getattr(args, key) for key in written} == written
    assert args == before
    assert config.optimizer.learning_rate == 6e-4
    assert config.data.tokenizer_type == "HFTokenizer"
    assert config.schedule.min_lr == 1e-5


def test_without_values_nothing_can_be_made():
    for make in (NeoXArgs, lambda: NeoXArgs.from_dict({}), lambda: NeoXArgs.from_ymls([])):
        with pytest.raises(ConfigError, match="num_layers is required"):
            make()


def test_it_is_a_dataclass_that_compares_and_pickles(minimal):
    args = NeoXArgs(**minimal)
    assert args == NeoXArgs.from_dict(minimal)
    assert pickle.loads(pickle.dumps(args)) == args
    assert pickle.loads(pickle.dumps(args)).given == args.given
    assert dataclasses.asdict(args)["hidden_size"] == 64
    assert "num_layers" in NeoXArgs.__dataclass_fields__
    assert args != NeoXArgs.from_dict({**minimal, "seed": 7})


def test_the_callers_values_are_not_shared(minimal):
    params = {"type": "Adam", "params": {"lr": 0.1}}
    args = NeoXArgs.from_dict({**minimal, "optimizer": params})
    params["params"]["lr"] = 0.2
    assert args.optimizer["params"]["lr"] == 0.1


def test_dashes_are_underscores_and_may_not_repeat_a_key(minimal):
    assert NeoXArgs.from_dict({**minimal, "log-interval": 7}).log_interval == 7
    with pytest.raises(ConfigError, match="'seed_x' is set twice"):
        NeoXArgs.from_dict({**minimal, "seed-x": 1, "seed_x": 1})


def test_update_value_checks_key_and_type(minimal):
    args = NeoXArgs.from_dict(minimal)
    args.update_value("wandb_group", "demo")
    assert args.wandb_group == "demo"
    assert "wandb_group" in args.given
    with pytest.raises(ConfigError, match="unknown key 'wandb_grup'; did you mean 'wandb_group'"):
        args.update_value("wandb_grup", "x")
    with pytest.raises(ConfigError, match="seed must be a whole number, got 'x'"):
        args.update_value("seed", "x")


def test_assigning_an_attribute_counts_as_setting_it(minimal):
    args = NeoXArgs.from_dict(minimal)
    args.train_iters = 7
    assert resolve(args).schedule.train_iters == 7
    args.train_iters = "seven"
    with pytest.raises(ConfigError, match="train_iters must be a whole number, got 'seven'"):
        resolve(args)


def test_overwriting_wins_over_files(write, minimal):
    path = write("a.yml", yaml.safe_dump(minimal))
    assert NeoXArgs.from_ymls([path], {"train-iters": 5}).train_iters == 5
    with pytest.raises(ConfigError, match="overwrite_values: seed must be a whole number"):
        NeoXArgs.from_ymls([path], overwrite_values={"seed": "x"})


def test_texts_of_files_are_kept(write, minimal):
    text = yaml.safe_dump(minimal) + "# a comment\n"
    args = NeoXArgs.from_ymls([write("a.yml", text)])
    assert args.config_files == {"a.yml": text}
    assert resolve(args).files == {"a.yml": text}


def test_megatron_config_makes_an_equal_object(minimal):
    args = NeoXArgs.from_dict({**minimal, "hostfile": "None", "optimizer": {"type": "sm3"}})
    assert NeoXArgs.from_dict(args.megatron_config) == args


def test_deepspeed_config_holds_what_was_written_for_deepspeed(minimal):
    args = NeoXArgs.from_dict({**minimal, "bf16": {"enabled": True}})
    expected = {"train_micro_batch_size_per_gpu": 4, "bf16": {"enabled": True}}
    assert args.deepspeed_config == expected


def test_representation_shows_what_was_set(minimal):
    assert repr(NeoXArgs.from_dict(minimal)).startswith("NeoXArgs(num_layers=2,")


def test_keys_are_declared_once():
    assert NeoXArgs.validate_keys() is True


def test_a_preset_changes_defaults_but_not_what_is_set(minimal):
    args = NeoXArgs.from_dict({**minimal, "neox_compat": "odm2024", "weight_decay": 0.2})
    assert (args.weight_decay, args.hidden_dropout, args.gradient_clipping) == (0.2, 0.1, 0.0)
    config = resolve(args)
    assert config.model.attention_dropout == 0.1
    assert config.data.weighted_sampler_alpha == 0.3
    assert config.optimizer.gradient_clipping == 0.0
    args.update_value("neox_compat", None)
    assert (args.weight_decay, args.hidden_dropout, args.gradient_clipping) == (0.2, 0.0, 1.0)


def test_defaults_are_those_of_gpt_neox_2026(minimal):
    args = NeoXArgs.from_dict(minimal)
    names = ("weight_decay", "attention_dropout", "hidden_dropout", "gradient_clipping")
    assert [getattr(args, name) for name in names] == [0.1, 0.0, 0.0, 1.0]
    assert args.output_layer_parallelism == "column"
    assert args.log_interval == 100


def test_null_in_a_file_asks_for_the_default(make_config):
    config = make_config(weight_decay=None, seed=None, neox_compat="odm2024")
    assert config.optimizer.weight_decay == 0.01
    assert config.launch.seed == 1234
