"""Keys that decide which losses move the weights, and what is measured on held-out text."""

import math

import pytest

from megatron.neox_arguments.rules.held_out import FORWARD_SHARE, MAX_COST, default_interval
from odm.methods import METHODS

PATHS = {f"{s}_data_paths": [f"d/{s}/wiki/text", f"d/{s}/code/text"] for s in ("train", "valid")}
NAMED = {**PATHS, "use_named_train_datasets": True, "use_named_eval_datasets": True}
MIXED = {**NAMED, "data_sampling_method": "smoothed_mean"}
HELD_OUT = {**MIXED, "data_sampling_reward": "heldout"}


def test_training_losses_are_the_default_and_measure_nothing(make_config):
    mixing = make_config(**MIXED).mixing
    assert (mixing.reward, mixing.heldout_interval) == ("train", None)


@pytest.mark.parametrize(
    "method", ["smoothed_mean", "odm_paper", "exp3", "ema", "naive_validation"]
)
def test_methods_that_learn_can_follow_held_out_losses(make_config, method):
    mixing = make_config(**{**HELD_OUT, "data_sampling_method": method}).mixing
    assert (mixing.method, mixing.reward) == (method, "heldout")
    assert (mixing.heldout_samples, mixing.heldout_parts) == (16, 8)


REQUIRED = {
    "doremi": {"data_sampling_reference_losses": {"wiki": 2, "code": 1}},
    "dynamic_batch_loading": {"data_sampling_target_losses": {"wiki": 2, "code": 1}},
    "skill_graph": {
        "data_sampling_transfer_matrix": {d: {"wiki": 1, "code": 1} for d in ("wiki", "code")}
    },
}
REWARDS = {
    "train": {"data_sampling_reward": "train"},
    "heldout": {"data_sampling_reward": "heldout"},
    "generalization": {"validation_based_reward": True, "mixed_minibatches": True},
}
REFUSED = {
    "train": {"naive_validation": "data_sampling_method: naive_validation learns from held-out"},
    "heldout": {"static": "data_sampling_reward: heldout: static does not learn from losses"},
    "generalization": {
        "static": "validation_based_reward needs a method that learns, but static learns nothing",
        "smoothed_mean": "validation_based_reward ends the research code with an error",
        "naive_validation": "validation_based_reward ends the research code with an error",
        "ema": "validation_based_reward gives ema rewards below 0, which it takes as weights",
        **{
            method: f"validation_based_reward is not defined for {method}, which the research code"
            for method in ("odm_paper", "ado", "learning_curve", *REQUIRED)
        },
    },
}
"""Reward -> method that cannot learn from it -> what its only message begins with."""


@pytest.mark.parametrize("reward", REWARDS)
@pytest.mark.parametrize("method", [name for name in METHODS if name != "schedule"])
def test_each_method_and_reward_is_accepted_or_refused_in_one_line(
    make_config, problem, method, reward
):
    keys = {**NAMED, "data_sampling_method": method, **REQUIRED.get(method, {}), **REWARDS[reward]}
    if method in REFUSED[reward]:
        assert problem(**keys).startswith(REFUSED[reward][method])
    else:
        assert make_config(**keys).mixing.reward == reward


def test_an_interval_measures_without_moving_the_weights(make_config):
    mixing = make_config(**NAMED, data_sampling_heldout_interval=5).mixing
    assert (mixing.method, mixing.reward, mixing.heldout_interval) == ("static", "train", 5)


@pytest.mark.parametrize("rows", [1, 20, 32, 33, 1000])
@pytest.mark.parametrize("data_parallel", [1, 2, 8])
@pytest.mark.parametrize("micro_batch_size", [1, 4])
def test_the_default_interval_keeps_the_cost_on_every_layout(rows, data_parallel, micro_batch_size):
    interval = default_interval(rows, 32, 1)
    per_round = data_parallel * micro_batch_size
    computed = math.ceil(rows / per_round) * per_round  # whole micro-batches on all ranks
    assert FORWARD_SHARE * computed / (32 * interval) <= MAX_COST
    assert default_interval(rows, 32, 7) % 7 == 0


def test_the_default_interval_of_two_domains(make_config):
    mixing = make_config(**HELD_OUT, data_sampling_update_frequency=3, train_iters=1000).mixing
    assert mixing.heldout_interval == 42  # one global batch in 40 iterations, a multiple of 3


def test_the_default_interval_does_not_depend_on_the_ranks(make_config):
    batch = {"train_batch_size": 32, "train_micro_batch_size_per_gpu": None}
    intervals = {
        make_config(world, **HELD_OUT, **batch).mixing.heldout_interval for world in (1, 2, 8)
    }
    assert len(intervals) == 1


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            {**HELD_OUT, "data_sampling_method": "static"},
            "data_sampling_reward: heldout: static does not learn from losses; use smoothed_mean, "
            "or set train",
        ),
        (
            {**NAMED, "data_sampling_method": "naive_validation"},
            "data_sampling_method: naive_validation learns from held-out losses; set "
            "data_sampling_reward: heldout",
        ),
        (
            {**HELD_OUT, "valid_data_paths": ["d/valid/wiki/text"]},
            "data_sampling_reward: no validation data of code; name data sets of all training "
            "domains in valid_data_paths, or set a share of split that fills a sample",
        ),
        (
            {**HELD_OUT, "valid_data_paths": None, "split": "1,0,1"},
            "data_sampling_reward: no validation data of wiki, code; name data sets of all "
            "training domains in valid_data_paths, or set a share of split that fills a sample",
        ),
        (
            {**HELD_OUT, "data_sampling_heldout_samples": 4},
            "data_sampling_heldout_parts is 8, data_sampling_heldout_samples is 4; the samples of "
            "a domain are divided into the parts, so make it at least as large",
        ),
        (
            {
                **HELD_OUT,
                "data_sampling_heldout_interval": 10,
                "data_sampling_update_frequency": 4,
            },
            "data_sampling_heldout_interval must be a multiple of "
            "data_sampling_update_frequency 4, got 10: weights follow held-out losses when they "
            "are measured",
        ),
        (
            {**HELD_OUT, "data_sampling_heldout_interval": 0},
            "data_sampling_heldout_interval must be at least 1, got 0",
        ),
        (
            {"data_path": "d/text", "data_sampling_heldout_interval": 5},
            "data_sampling_heldout_interval needs named datasets; set use_named_train_datasets: "
            "true",
        ),
        (
            {**HELD_OUT, "data_sampling_reward": "validation"},
            "data_sampling_reward must be one of train, heldout, got 'validation'",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(problem, keys, expected):
    assert problem(**keys) == expected


def test_text_that_is_split_off_serves_as_windows(make_config):
    keys = {**HELD_OUT, "valid_data_paths": None, "split": "8,1,1"}
    assert make_config(**keys).mixing.reward == "heldout"


@pytest.mark.parametrize(
    ("keys", "note"),
    [
        (
            {**MIXED, "data_sampling_heldout_samples": 4},
            "'data_sampling_heldout_samples' has no effect: data_sampling_reward is train",
        ),
        (
            {**HELD_OUT, "train_iters": 30},
            "data_sampling_heldout_interval 40: held-out losses are never measured in 30 "
            "iterations, so smoothed_mean never changes the weights",
        ),
        (
            {**HELD_OUT, "data_sampling_method": "learning_curve", "train_iters": 30},
            "data_sampling_heldout_interval 40: held-out losses are never measured in 30 "
            "iterations, so learning_curve follows training losses",
        ),
        (
            {**HELD_OUT, "data_sampling_warmup_steps": 50, "train_iters": 80},
            "the first update after data_sampling_warmup_steps 50 is at iteration 80: "
            "smoothed_mean never changes the weights in 80 iterations",
        ),
        (
            {**MIXED, "data_sampling_update_frequency": 100},
            "the first update after data_sampling_warmup_steps 0 is at iteration 100: "
            "smoothed_mean never changes the weights in 100 iterations",
        ),
        (
            {**HELD_OUT, "data_sampling_method": "ado", "train_iters": 360},
            "ado needs 9 measurements, one in 40 iterations: ado never changes the weights in 360 "
            "iterations",
        ),
        (
            {**HELD_OUT, "data_sampling_method": "ado", "train_iters": 1000},
            "ado needs 9 measurements, one in 40 iterations: the initial weights are kept until "
            "iteration 360",
        ),
        (
            {**HELD_OUT, "data_sampling_method": "learning_curve", "train_iters": 280},
            "learning_curve needs 7 measurements, one in 40 iterations: learning_curve never "
            "follows held-out losses in 280 iterations",
        ),
        (
            {**HELD_OUT, "data_sampling_method": "learning_curve", "train_iters": 1000},
            "learning_curve needs 7 measurements, one in 40 iterations: no weight follows held-out "
            "losses before iteration 280",
        ),
        (
            {
                **HELD_OUT,
                "data_sampling_method": "learning_curve",
                "data_sampling_guard": "anchor",
                "train_iters": 400,
            },
            "learning_curve needs 7 measurements, one in 40 iterations: data_sampling_guard "
            "decides at iteration 240, and no weight follows held-out losses before iteration 280",
        ),
        (
            {**MIXED, "data_sampling_method": "ado", "train_iters": 90},
            "ado needs 90 iterations with losses: ado never changes the weights in 90 iterations",
        ),
        (
            {**MIXED, "data_sampling_guard": "anchor", "data_sampling_warmup_steps": 60},
            "data_sampling_warmup_steps 60: data_sampling_guard keeps the initial weights, since "
            "it decides at iteration 60 and no weight changes before iteration 61",
        ),
        (
            {**NAMED, "data_sampling_method": "static", "data_sampling_warmup_steps": 10},
            "'data_sampling_warmup_steps' has no effect: static does not use it",
        ),
        (
            {**NAMED, "data_sampling_method": "static", "data_sampling_trust_region": {"kl": 1}},
            "'data_sampling_trust_region' has no effect: static does not use it",
        ),
        (
            {**MIXED, "data_sampling_method": "exp3", "data_sampling_smoothing_factor": 0},
            "'data_sampling_smoothing_factor' has no effect: exp3 does not use it",
        ),
        (
            {**NAMED, "data_sampling_objective": {"perplexity": 1}},
            "'data_sampling_objective' has no effect: there is no data_sampling_method",
        ),
    ],
)
def test_what_has_no_effect_is_noted(make_config, keys, note):
    assert note in make_config(**keys).notes


@pytest.mark.parametrize(
    "keys",
    [
        HELD_OUT,
        {**MIXED, "data_sampling_warmup_steps": 98},
        {**MIXED, "data_sampling_method": "ado", "train_iters": 10_000},
        {**MIXED, "data_sampling_method": "learning_curve", "train_iters": 30},
        {**HELD_OUT, "data_sampling_method": "learning_curve", "train_iters": 2000},
        {**MIXED, "data_sampling_guard": "anchor", "data_sampling_warmup_steps": 58},
        {**NAMED, "data_sampling_update_frequency": 0},
    ],
)
def test_what_has_an_effect_is_not_noted(make_config, keys):
    notes = make_config(**keys).notes
    assert not [note for note in notes if "data_sampling" in note or "initial weights" in note]


RESEARCH = {**NAMED, "validation_based_reward": True}


def test_the_research_codes_key_with_mixed_minibatches_is_the_generalization_reward(make_config):
    mixing = make_config(
        **RESEARCH,
        mixed_minibatches=True,
        data_sampling_method="exp3",
        batch_normalized_reward=True,
        scale_by_reward_loss_diff=True,
    ).mixing
    assert mixing.reward == "generalization"
    assert mixing.batch_normalized_reward
    assert mixing.scale_by_reward_loss_diff


def test_the_research_codes_key_with_mixed_batches_is_the_held_out_loss(make_config):
    keys = {**RESEARCH, "mixed_batches": True, "data_sampling_method": "naive_validation"}
    assert make_config(**keys).mixing.reward == "heldout"


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"data_sampling_method": "exp3"}, "trains nothing"),
        ({"data_sampling_method": "exp3", "mixed_batches": True}, "never updates"),
        ({"data_sampling_method": "smoothed_mean", "mixed_minibatches": True}, "ends"),
        ({"data_sampling_method": "naive_validation", "mixed_minibatches": True}, "ends"),
        ({"data_sampling_method": "ema", "mixed_minibatches": True}, "rewards below 0"),
        ({"data_sampling_method": "odm_paper", "mixed_minibatches": True}, "does not have"),
    ],
)
def test_what_the_research_code_cannot_do_is_refused_with_the_reason(problem, keys, reason):
    message = problem(**RESEARCH, **keys)
    assert message.startswith("validation_based_reward ")
    assert reason in message
    assert message.endswith("use data_sampling_reward: heldout")


def test_a_guard_is_noted_if_it_decides_before_the_first_measurement(make_config):
    keys = {"data_sampling_guard": "anchor", "data_sampling_heldout_interval": 70}
    assert (
        "the first update after data_sampling_warmup_steps 0 is at iteration 70: "
        "data_sampling_guard keeps the initial weights, since it decides at iteration 60 and no "
        "weight changes before iteration 70"
    ) in make_config(**HELD_OUT, **keys).notes


def test_the_two_ways_to_set_the_reward_exclude_each_other(problem):
    keys = {"mixed_minibatches": True, "data_sampling_method": "exp3"}
    assert problem(**RESEARCH, **keys, data_sampling_reward="heldout") == (
        "validation_based_reward and data_sampling_reward are both set; keep one"
    )


@pytest.mark.parametrize("key", ["batch_normalized_reward", "scale_by_reward_loss_diff"])
def test_options_of_the_generalization_reward_need_it(problem, key):
    assert problem(**MIXED, **{key: True}) == (
        f"{key} needs validation_based_reward, mixed_minibatches and data_sampling_method: exp3; "
        "set these, or remove it"
    )
