import json

import pytest

NAMED = {
    "train_data_paths": ["d/a/text", "d/b/text", "d/c/text"],
    "use_named_train_datasets": True,
}
SCHEDULE = """\
provenance: {tool: by hand}
interpolation: linear
schedule:
- {tokens: 0, weights: {c: 3, a: 1, b: 0}}
- {iterations: 10, weights: {a: 1, b: 1, c: 1}}
- {tokens: 10240, weights: {a: 0, b: 1, c: 0}}
"""


def test_rules_without_a_file(make_config):
    def found(value):
        config = make_config(**NAMED, train_data_weights=value)
        weighting = config.data.train_weighting
        return weighting.rule, weighting.value, config.data.train_weights

    assert found([1, 2, 3]) == ("list", None, (1.0, 2.0, 3.0))
    assert found(None) == ("list", None, (1.0, 1.0, 1.0))
    assert found("uniform") == ("uniform", None, (1.0, 1.0, 1.0))
    assert found("natural") == ("natural", None, ())
    assert found({"temperature": 5}) == ("temperature", 5.0, ())
    assert found({"unimax": "4"}) == ("unimax", 4.0, ())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("other", "train_data_weights must be .* one of uniform, natural .*, got 'other'"),
        ({"temperature": 0}, "train_data_weights.temperature must be a number, above 0, got 0"),
        ({"temperature": None}, "must have one of the keys"),
        ({"unimax": True}, "train_data_weights.unimax must be a number, above 0, got True"),
        ({"a": 1, "b": 2, "c": 3}, "one of the keys temperature, unimax, .*{file: FILE}"),
        ({"temperature": 1, "unimax": 1}, "must have one of the keys"),
        ({"file": 3}, "train_data_weights.file must be text, the name of a file, got 3"),
        ({"file": "none.yml"}, r"none.yml: cannot be read \(No such file"),
    ],
)
def test_other_values_are_refused(problem, value, message):
    import re

    assert re.search(message, problem(**NAMED, train_data_weights=value))


def test_a_rule_has_no_meaning_for_one_dataset(problem):
    message = problem(data_path="d/a/text", train_data_weights="natural")
    assert message == "train_data_weights has no meaning with data_path; use train_data_paths"


@pytest.mark.parametrize(
    "text",
    ["weights: {b: 2, a: 1, c: 4e-1}\nprovenance: {tool: x}\n", '{"a": 1, "b": 2, "c": 0.4}'],
)
def test_a_file_has_a_weight_per_domain_in_any_order(make_config, write, text):
    name = write("weights.yml", text)
    data = make_config(**NAMED, train_data_weights={"file": name}).data
    assert data.train_weights == (1.0, 2.0, 0.4)
    assert (data.train_weighting.rule, data.train_weighting.file) == ("file", name)
    assert len(data.train_weighting.sha256) == 64


def test_what_a_file_says_of_its_origin_is_in_the_resolved_configuration(make_config, write):
    name = write("w.yml", "weights: {a: 1, b: 2, c: 3}\nprovenance: {tool: RegMix, row: 7}\n")
    resolved = make_config(**NAMED, train_data_weights={"file": name}).to_dict()
    content = resolved["data"]["train_weighting"]["content"]
    assert content["provenance"] == {"tool": "RegMix", "row": 7}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{a: 1, b: 2}", "w.yml has no value for domain 'c'; the domains are a, b, c"),
        ("{a: 1, b: 2, c: 3, d: 4}", "w.yml names domain 'd'"),
        ("{a: 1, b: 2, c: -3}", "w.yml.c must be a number, at least 0, got -3"),
        ("{a: 1, b: 2, c: null}", "w.yml has no value for domain 'c'"),
        ("{a: 0, b: 0, c: 0}", "w.yml: the weights are all 0; give one of them a positive number"),
        ("{a: 1e308, b: 1e308, c: 0}", "w.yml: the weights have a sum too large for a float"),
        ("[1, 2, 3]", "w.yml:1: must be a section"),
    ],
)
def test_files_that_do_not_fit_are_refused(problem, write, text, message):
    assert message in problem(**NAMED, train_data_weights={"file": write("w.yml", text)})


def test_a_file_needs_named_datasets(problem, write):
    name = write("w.yml", "{a: 1, b: 2, c: 3}")
    keys = {"train_data_paths": NAMED["train_data_paths"], "train_data_weights": {"file": name}}
    assert "needs named datasets; set use_named_train_datasets: true" in problem(**keys)


def test_a_schedule_becomes_points_by_iteration_of_a_method_of_its_own(make_config, write):
    # an iteration is 4 samples of 128 tokens
    config = make_config(**NAMED, train_data_weights={"schedule": write("s.yml", SCHEDULE)})
    assert (config.mixing.method, config.mixing.interpolation) == ("schedule", "linear")
    assert config.mixing.points == (
        (0.0, (1.0, 0.0, 3.0)),
        (10.0, (1.0, 1.0, 1.0)),
        (20.0, (0.0, 1.0, 0.0)),
    )
    assert config.data.train_weights == (1.0, 0.0, 3.0)
    assert config.data.train_weighting.content["provenance"] == {"tool": "by hand"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1", "must have schedule, a list of"),
        ("schedule: [{tokens: 5, weights: {a: 1, b: 1, c: 1}}]", "point 1 must be at 0, got"),
        (
            "schedule: [{tokens: 0, weights: {a: 1, b: 1, c: 1}}, "
            "{tokens: 0, weights: {a: 1, b: 1, c: 1}}]",
            "point 2 must be after the one before it",
        ),
        ("schedule: [{weights: {a: 1}}]", "point 1 must have weights and either tokens or"),
        ("schedule: [{tokens: 0, weights: {a: 1}}]", "point 1 has no value for domain 'b'"),
        ("schedule: [1]", "point 1 must have weights and either tokens or iterations"),
        (SCHEDULE.replace("linear", "cubic"), "interpolation must be one of constant, linear"),
    ],
)
def test_schedules_that_do_not_fit_are_refused(problem, write, text, message):
    assert message in problem(**NAMED, train_data_weights={"schedule": write("s.yml", text)})


def test_a_schedule_and_a_method_that_learns_exclude_each_other(problem, write):
    keys = {**NAMED, "train_data_weights": {"schedule": write("s.yml", SCHEDULE)}}
    message = problem(**keys, data_sampling_method="smoothed_mean")
    assert "schedule fixes the weights, data_sampling_method smoothed_mean learns" in message
    message = problem(**NAMED, data_sampling_method="schedule")
    assert message == (
        "data_sampling_method schedule needs train_data_weights: {schedule: FILE}; add it"
    )


def test_each_point_of_a_schedule_must_be_within_reach_of_the_limits(problem, write):
    keys = {**NAMED, "train_data_weights": {"schedule": write("s.yml", SCHEDULE)}}
    message = problem(**keys, data_sampling_max_weight=0.5)
    assert "largest weights of the domains that are drawn sum to 0.5" in message


def test_the_file_of_a_resumed_run_may_be_gone(make_config, write, tmp_path):
    name = write("s.yml", SCHEDULE)
    keys = {**NAMED, "train_data_weights": {"schedule": name}, "load": str(tmp_path / "run")}
    before = make_config(**keys)
    write("run/latest", "global_step7\n")
    write("run/global_step7/configs/resolved.json", json.dumps(before.to_dict()))
    (tmp_path / "s.yml").unlink()
    after = make_config(**keys)
    assert after.mixing == before.mixing
    assert after.data.train_weighting == before.data.train_weighting
    assert any("s.yml is missing; its content is that of the checkpoint" in n for n in after.notes)


def test_a_checkpoint_of_other_domains_does_not_stand_in_for_the_file(problem, make_config, write):
    name = write("s.yml", SCHEDULE)
    keys = {**NAMED, "train_data_weights": {"schedule": name}}
    resolved = make_config(**keys).to_dict()
    resolved["data"]["train_domains"] = ["x", "y", "z"]
    write("run/latest", "global_step7\n")
    folder = write("run/global_step7/configs/resolved.json", json.dumps(resolved))
    keys["train_data_weights"] = {"schedule": name.replace("s.yml", "t.yml")}
    assert "cannot be read" in problem(**keys, load=folder.split("/global_step7")[0])


GROUPS = {"code": {"domains": ["a", "b"], "max": 0.3}}


def test_groups_and_the_trust_region(make_config):
    config = make_config(
        **NAMED, data_sampling_groups=GROUPS, data_sampling_trust_region={"kl": "1e-3"}
    )
    (group,) = config.mixing.groups
    assert (group.name, group.domains, group.minimum, group.maximum) == ("code", ("a", "b"), 0, 0.3)
    assert config.mixing.trust_region == {"kl": 0.001}


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"x": None}, "x.domains is []"),
        ({"x": 0.5}, "x must be a section"),
        ({"x": {"domains": ["a"], "max": 1.5}}, "x.max must be a number, in [0, 1], got 1.5"),
        ({"x": {"domains": ["a"]}}, "x must have min, max or both"),
        ({"x": {"domains": ["a", "q"], "max": 1}}, "x.domains names 'q'; list some of a, b, c"),
        ({"x": {"domains": [], "max": 1}}, "x.domains is []"),
        ({"x": {"domains": ["a"], "min": 0.5, "max": 0.2}}, "0 <= min <= max <= 1"),
        ({**GROUPS, "x": {"domains": ["a"], "min": 0.1}}, "domain 'a' is in code and in x"),
        ({**GROUPS, "x": {"domains": ["c"], "max": 0.5}}, "drawn sum to 0.8, must be at least 1"),
        (
            {
                "x": {"domains": ["a", "b"], "min": 0.7},
                "y": {"domains": ["c"], "min": 0.6},
            },
            "the smallest weights of groups and of the other domains sum to 1.3",
        ),
    ],
)
def test_groups_that_no_weights_satisfy_are_refused(problem, groups, message):
    assert message in problem(**NAMED, data_sampling_groups=groups)


def test_limits_of_groups_and_of_their_domains_must_fit(problem):
    message = problem(**NAMED, data_sampling_groups=GROUPS, data_sampling_min_weight=0.2)
    assert "data_sampling_min_weight of its domains sum to 0.4, max is 0.3" in message
    message = problem(
        **NAMED,
        data_sampling_groups={"code": {"domains": ["a"], "min": 0.6}},
        data_sampling_max_weight={"a": 0.5},
    )
    assert "domains that are drawn sum to 0.5, min is 0.6" in message


@pytest.mark.parametrize(
    "value", [{}, {"kl": 0}, {"total_variation": 1.5}, {"kl": 1, "x": 2}, {"kl": None}]
)
def test_trust_regions_without_a_meaning_are_refused(problem, value):
    message = problem(**NAMED, data_sampling_trust_region=value)
    assert message.startswith("data_sampling_trust_region")


def test_the_guard_needs_a_method_that_learns(make_config, problem):
    config = make_config(**NAMED, data_sampling_method="exp3", data_sampling_guard="anchor")
    assert config.mixing.guard == "anchor"
    message = problem(**NAMED, data_sampling_guard="anchor")
    assert "no data_sampling_method learns none; remove it or set a method that learns" in message
    message = problem(**NAMED, data_sampling_guard="other")
    assert "data_sampling_guard must be one of anchor, got 'other'" in message
