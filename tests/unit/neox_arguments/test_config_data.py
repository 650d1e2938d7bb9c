import re

import pytest

from megatron.neox_arguments import ConfigError
from odm.methods import METHODS

PATHS = {
    f"{s}_data_paths": [f"d/{s}/wiki/text", f"d/{s}/code/text"] for s in ("train", "valid", "test")
}
NAMED = {**PATHS, "use_named_train_datasets": True, "use_named_eval_datasets": True}
MIXED = {**NAMED, "data_sampling_method": "smoothed_mean"}
CURVE = {**NAMED, "data_sampling_method": "learning_curve"}


def test_a_single_dataset_is_split(make_config):
    config = make_config(data_path="d/text", split="8/1/1")
    assert (
        config.data.train_paths == config.data.valid_paths == config.data.test_paths == ("d/text",)
    )
    assert config.data.split == (0.8, 0.1, 0.1)
    assert config.data.train_domains == ()


@pytest.mark.parametrize(
    ("text", "expected"), [("1", (1, 0, 0)), ("3,1", (0.75, 0.25, 0)), ("969, 30, 1", None)]
)
def test_missing_shares_are_zero(make_config, text, expected):
    split = make_config(data_path="d/text", split=text).data.split
    assert split == (expected or (0.969, 0.03, 0.001))


@pytest.mark.parametrize("text", ["", "a,b", "1,2,3,4", "-1,2", "0,0,0", "nan"])
def test_splits_that_are_not_shares_are_refused(make_config, text):
    with pytest.raises(ConfigError, match="split must be up to three shares"):
        make_config(data_path="d/text", split=text)


def test_without_data_the_rest_is_still_checked(make_config):
    config = make_config()
    assert (config.data.train_paths, config.data.split, config.data.train_domains) == ((), None, ())


def test_training_needs_data(problem):
    assert problem(user_script="x/train.py") == (
        "there is no training data; set data_path or train_data_paths"
    )


TRAIN = {"train_data_paths": PATHS["train_data_paths"]}
VALID = {"valid_data_paths": PATHS["valid_data_paths"]}


@pytest.mark.parametrize(
    ("keys", "valid", "test", "split"),
    [
        (TRAIN, (), (), None),
        ({**TRAIN, **VALID}, ("d/valid/wiki/text", "d/valid/code/text"), (), None),
        (VALID, ("d/valid/wiki/text", "d/valid/code/text"), (), None),
        ({"train_data_paths": ["a/b"], "split": "8,1,1"}, ("a/b",), ("a/b",), (0.8, 0.1, 0.1)),
        ({**TRAIN, "test_data_paths": ["a/b"], "split": "8,1,1"}, (), ("a/b",), None),
        ({"data_path": "a/b", "split": "1"}, ("a/b",), ("a/b",), (1.0, 0.0, 0.0)),
    ],
)
def test_held_out_text_is_named_or_split_off_or_there_is_none(
    make_config, keys, valid, test, split
):
    config = make_config(**keys)
    assert (config.data.valid_paths, config.data.test_paths, config.data.split) == (
        valid,
        test,
        split,
    )
    assert (len(config.data.valid_weights), len(config.data.test_weights)) == (
        len(valid),
        len(test),
    )


def test_what_is_split_off_has_the_names_and_weights_of_the_training_data(make_config):
    keys = {**TRAIN, "split": "8,1,1", "train_data_weights": [3, 1]}
    config = make_config(**keys, data_domain_names=["a", "b"])
    assert (
        config.data.train_domains
        == config.data.valid_domains
        == config.data.test_domains
        == ("a", "b")
    )
    assert config.data.valid_weights == config.data.test_weights == (3.0, 1.0)
    config = make_config(**keys, use_named_eval_datasets=True, valid_data_weights=[1, 2])
    assert (config.data.train_domains, config.data.valid_domains) == ((), ("wiki", "code"))
    assert config.data.valid_weights == (1.0, 2.0)


LIMIT = {"max_validation_samples_per_dataset": 5}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (TRAIN, "no held-out text"),
        ({**PATHS, "split": "8,1,1"}, "'split' has no effect: valid_data_paths"),
        ({**NAMED, "eval_iters": 3}, "eval_iters 3: each held-out dataset .* global batches"),
        ({**NAMED, **LIMIT, "eval_iters": 3}, "eval_iters 3 is not used where max_validation_sam"),
        ({**PATHS, "eval_iters": 0}, "eval_iters 0: training measures nothing"),
        ({**NAMED, "eval_iters": 0}, "eval_iters 0: training measures nothing"),
        ({**TRAIN, "split": "8,1,1"}, None),
        (PATHS, None),
        ({**PATHS, "eval_iters": 3}, None),
        ({**NAMED, **LIMIT}, None),
        ({"data_path": "a/b", "eval_iters": 3}, None),
        ({"eval_iters": 0}, None),
    ],
)
def test_a_note_tells_what_becomes_of_held_out_text(make_config, keys, words):
    notes = make_config(**keys).notes
    assert (len(notes), bool(notes)) == ((1, True) if words else (0, False))
    if words:
        assert re.search(words, notes[0])


def test_only_a_number_that_was_written_limits_named_data(make_config):
    assert make_config(**NAMED).evaluation.named_iters is None
    assert make_config(**NAMED, eval_iters=3).evaluation.named_iters == 3


def test_weights_are_kept_as_given_and_equal_without(make_config):
    config = make_config(**PATHS, train_data_weights=[2, "1e1"])
    assert config.data.train_weights == (2.0, 10.0)
    assert config.data.valid_weights == config.data.test_weights == (1.0, 1.0)


def test_domains_are_named_by_their_folders_or_by_the_user(make_config):
    config = make_config(**NAMED)
    assert (
        config.data.train_domains
        == config.data.valid_domains
        == config.data.test_domains
        == ("wiki", "code")
    )
    config = make_config(**PATHS, data_domain_names=["a", "b"])
    assert (
        config.data.train_domains
        == config.data.valid_domains
        == config.data.test_domains
        == ("a", "b")
    )
    assert make_config(**PATHS).data.train_domains == ()


def test_old_dataset_formats_are_read_as_memory_maps(make_config):
    assert make_config(data_impl="mmap").notes == ()
    assert make_config(data_impl="lazy").notes == (
        "data_impl lazy is read as mmap: files are memory-mapped",
    )


def test_a_mixing_method_names_its_domains(make_config):
    config = make_config(**PATHS, data_sampling_method="exp3")
    assert config.data.train_domains == ("wiki", "code")
    assert config.data.valid_domains == ()


@pytest.mark.parametrize(
    ("keys", "length"),
    [({}, 8), ({"mixed_minibatches": True}, 4), ({"mixed_batches": True}, 1)],
)
def test_the_mode_says_how_many_samples_share_a_domain(make_config, keys, length):
    assert make_config(world_size=2, **MIXED, **keys).mixing.run_length == length


def test_a_method_that_does_not_learn_has_no_frequency(make_config):
    keys = {"data_sampling_method": "static", "data_sampling_update_frequency": 0}
    assert make_config(**NAMED, **keys).notes == ()


def test_no_method_and_static_are_the_same(make_config):
    assert make_config(**NAMED).mixing.method == "static"
    assert make_config(**NAMED, data_sampling_method="static").mixing.method == "static"


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            {**PATHS, "data_path": "x"},
            "data_path and train_data_paths are both set; keep one of the two ways",
        ),
        (
            {**PATHS, "train_data_weights": [1]},
            "train_data_weights has 1 value, train_data_paths has 2; make them equal",
        ),
        (
            {**PATHS, "train_data_weights": [1, -1]},
            "train_data_weights must be finite and at least 0, got [1.0, -1.0]",
        ),
        (
            {**PATHS, "valid_data_weights": [0, 0]},
            "valid_data_weights are all 0; give one of them a positive number",
        ),
        (
            {**PATHS, "train_data_weights": [1e308, 1e308]},
            "train_data_weights have a sum too large for a float, the largest is 1e+308; make them "
            "smaller",
        ),
        (
            {"data_path": "x", "train_data_weights": [1]},
            "train_data_weights has no meaning with data_path; use train_data_paths",
        ),
        (
            {"data_path": "x", "split": "a,b"},
            "split must be up to three shares such as '969, 30, 1', got 'a,b'",
        ),
        (
            {**NAMED, "train_data_paths": ["x/wiki/text", "y/wiki/text"]},
            "train_data_paths: domain 'wiki' names two datasets: x/wiki/text and y/wiki/text; set "
            "data_domain_names",
        ),
        (
            {**NAMED, "train_data_paths": ["text", "y/wiki/text"]},
            "train_data_paths: 'text' is in no folder that could name its domain; set "
            "data_domain_names",
        ),
        (
            {**NAMED, "data_domain_names": ["a"]},
            "data_domain_names has 1 name, train_data_paths has 2 paths; make them equal",
        ),
        (
            {"data_path": "x", "use_named_train_datasets": True},
            "data_path is one dataset without domains; for named datasets or a mixing method set "
            "train_data_paths",
        ),
        (
            {**MIXED, "mixed_batches": True, "mixed_minibatches": True},
            "mixed_batches and mixed_minibatches are both set; keep one",
        ),
        (
            {**PATHS, "mixed_batches": True},
            "mixed_batches needs named datasets; set use_named_train_datasets: true",
        ),
        (
            {**MIXED, "data_sampling_update_frequency": 0},
            "data_sampling_update_frequency must be at least 1 for smoothed_mean, got 0",
        ),
        (
            {"data_sampling_update_frequency": -3},
            "data_sampling_update_frequency must be at least 0, got -3",
        ),
        (
            {**NAMED, "data_domain_names": ["a", "a"]},
            "data_domain_names: 'a' names two datasets: d/train/wiki/text and d/train/code/text; "
            "give each its own name",
        ),
        (
            {**NAMED, "data_domain_names": ["a", ""]},
            "data_domain_names contains an empty name, for d/train/code/text; write one",
        ),
        (
            {**MIXED, "data_sampling_warmup_steps": -1},
            "data_sampling_warmup_steps must be at least 0, got -1",
        ),
        (
            {**MIXED, "data_sampling_smoothing_factor": 1},
            "data_sampling_smoothing_factor must be in [0, 1), got 1.0; 1.0 would never learn",
        ),
        (
            {**NAMED, "data_sampling_warmup_steps": 5},
            "data_sampling_warmup_steps is 5 but there is no data_sampling_method; set one",
        ),
        (
            {**MIXED, "weight_by_num_documents": True},
            "weight_by_num_documents fixes the weights, data_sampling_method smoothed_mean learns "
            "them; keep one",
        ),
        (
            {**NAMED, "max_validation_samples_per_dataset": 0},
            "max_validation_samples_per_dataset must be at least 1, got 0",
        ),
        (
            {**CURVE, "data_sampling_objective": {"loss": 1}},
            "unknown key 'data_sampling_objective.loss'; known keys: perplexity, weights",
        ),
        (
            {**CURVE, "data_sampling_objective": {"perplexity": 2}},
            "data_sampling_objective.perplexity must be a number, in [0, 1], got 2",
        ),
        (
            {**CURVE, "data_sampling_objective": {"weights": {"web": 1}}},
            "data_sampling_objective.weights names domain 'web'; the domains are wiki, code",
        ),
        (
            {**CURVE, "data_sampling_objective": {"weights": {"code": -1}}},
            "data_sampling_objective.weights.code must be a number, at least 0, got -1",
        ),
        (
            {**CURVE, "data_sampling_objective": {"weights": {"wiki": 0, "code": 0}}},
            "data_sampling_objective.weights are all 0; give one of them a positive number",
        ),
        (
            {**CURVE, "data_sampling_objective": {"weights": {"wiki": 1e308, "code": 1e308}}},
            "data_sampling_objective.weights have a sum too large for a float, the largest is "
            "1e+308; make them smaller",
        ),
        (
            {**CURVE, "data_sampling_objective": {"weights": [1, 2]}},
            "data_sampling_objective.weights must be a section (key: value pairs), got [1, 2]",
        ),
        (
            {**CURVE, "data_sampling_max_ratio": 1},
            "data_sampling_max_ratio must be in (1, 1000], got 1.0; 1.0 would never learn",
        ),
        (
            {**CURVE, "data_sampling_exponent": 0},
            "data_sampling_exponent must be in (0, 1], got 0.0; 0.0 would never learn",
        ),
        (
            {**CURVE, "data_sampling_repetition_decay": 0},
            "data_sampling_repetition_decay must be above 0, got 0.0",
        ),
        (
            {**NAMED, "data_sampling_method": "smooth"},
            f"data_sampling_method must be one of {', '.join(METHODS)}, got 'smooth'",
        ),
    ],
)
def test_wrong_data_is_refused(problem, keys, expected):
    assert problem(**keys) == expected


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (None, (0.5, ())),
        ({}, (0.5, ())),
        ({"perplexity": "1e-1"}, (0.1, ())),
        ({"weights": {"code": 2}}, (0.5, (1.0, 2))),
        ({"perplexity": 1, "weights": {"code": 0, "wiki": "3"}}, (1, (3, 0))),
    ],
)
def test_the_objective_is_a_share_and_a_number_per_domain(make_config, objective, expected):
    config = make_config(**CURVE, data_sampling_objective=objective)
    assert (config.mixing.perplexity_share, config.mixing.objective_weights) == expected
    options = {"data_sampling_max_ratio": 2, "data_sampling_exponent": 0.25}
    mixing = make_config(**CURVE, **options).mixing
    assert (mixing.max_ratio, mixing.exponent) == (2.0, 0.25)


def test_an_objective_without_a_method_that_has_one_is_noted(make_config):
    keys = {"data_sampling_objective": {"perplexity": 1}, "data_sampling_exponent": 0.25}
    notes = make_config(**MIXED, **keys).notes
    assert "'data_sampling_objective' has no effect: smoothed_mean does not use it" in notes
    assert "'data_sampling_exponent' has no effect: smoothed_mean does not use it" in notes
    notes = make_config(**MIXED, data_sampling_repetition_decay=15).notes
    assert "'data_sampling_repetition_decay' has no effect: smoothed_mean does not use it" in notes


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, ((), (), ())),
        ({"data_sampling_min_weight": 0.1}, ((0.1, 0.1), (), ())),
        ({"data_sampling_min_weight": {"code": "1e-1"}}, ((0.0, 0.1), (), ())),
        ({"data_sampling_max_weight": {"wiki": 0.7}}, ((), (0.7, 1.0), ())),
        ({"data_sampling_max_epochs": 4}, ((), (), (4.0, 4.0))),
        ({"data_sampling_max_epochs": {"code": 2}}, ((), (), (None, 2))),
    ],
)
def test_limits_are_for_all_domains_or_by_name(make_config, keys, expected):
    for base in (MIXED, NAMED):
        config = make_config(**base, **keys)
        assert (
            config.mixing.min_weights,
            config.mixing.max_weights,
            config.mixing.max_epochs,
        ) == expected


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            {"data_sampling_min_weight": {"web": 0.1}},
            "data_sampling_min_weight names domain 'web'; the domains are wiki, code",
        ),
        (
            {"data_sampling_max_weight": 1.5},
            "data_sampling_max_weight must be a number, in [0, 1], got 1.5",
        ),
        (
            {"data_sampling_max_epochs": {"code": 0}},
            "data_sampling_max_epochs.code must be a number, above 0, got 0",
        ),
        (
            {"data_sampling_min_weight": {"code": "some"}},
            "data_sampling_min_weight.code must be a number, in [0, 1], got 'some'",
        ),
        (
            {"data_sampling_min_weight": {"wiki": 0.7, "code": 0.4}},
            "data_sampling_min_weight: the smallest weights of 2 domains sum to 1.1, must be at "
            "most 1; lower them",
        ),
        (
            {"data_sampling_max_weight": 0.4},
            "data_sampling_max_weight: the largest weights of the domains that are drawn sum to "
            "0.8, must be at least 1; raise them",
        ),
        (
            {"data_sampling_max_weight": 0.9, "train_data_weights": [0, 1]},
            "data_sampling_max_weight: the largest weights of the domains that are drawn sum to "
            "0.9, must be at least 1; raise them",
        ),
        (
            {"data_sampling_min_weight": 0.4, "data_sampling_max_weight": {"code": 0.3}},
            "data_sampling_min_weight of code is 0.4, data_sampling_max_weight is 0.3; lower the "
            "first or raise the second",
        ),
    ],
)
def test_limits_that_cannot_be_kept_are_refused(problem, keys, expected):
    assert problem(**MIXED, **keys) == expected


def test_limits_need_domains(problem):
    assert problem(data_path="d/text", data_sampling_max_epochs=2) == (
        "data_sampling_max_epochs needs named datasets; set use_named_train_datasets: true"
    )


@pytest.mark.parametrize("method", ["smoothed_mean", "odm_paper", "exp3", "ema"])
def test_a_method_that_learns_needs_two_domains(problem, method):
    one = {f"{s}_data_paths": [f"d/{s}/wiki/text"] for s in ("train", "valid", "test")}
    assert problem(**one, data_sampling_method=method) == (
        f"data_sampling_method {method} needs at least 2 domains, train_data_paths has 1; "
        "add domains or remove the method"
    )


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        (
            {"data_sampling_warmup_steps": 10, "train_iters": 10},
            "data_sampling_warmup_steps 10: smoothed_mean never changes the weights in 10 "
            "iterations",
        ),
        (
            {"data_sampling_method": "exp3", "data_sampling_smoothing_factor": 0.5},
            "'data_sampling_smoothing_factor' has no effect: exp3 does not use it",
        ),
        (
            {
                "data_sampling_method": None,
                "weight_by_num_documents": True,
                "train_data_weights": [2.0] * len(PATHS["train_data_paths"]),
            },
            "'train_data_weights' has no effect: weight_by_num_documents computes the weights",
        ),
        (
            {"valid_data_weights": [2.0] * len(PATHS["train_data_paths"])},
            "'valid_data_weights' has no effect: use_named_eval_datasets evaluates each dataset by "
            "itself",
        ),
    ],
)
def test_settings_that_do_nothing_are_noted(make_config, changes, note):
    assert make_config(**{**MIXED, **changes}).notes == (note,)
