"""Losses and matrices that mixing methods need, from files and sections."""

import json

import pytest

from megatron.neox_arguments import NeoXArgs, Purpose, resolve

NAMED = {
    "train_data_paths": ["d/wiki/text", "d/code/text"],
    "use_named_train_datasets": True,
}
DOREMI = {**NAMED, "data_sampling_method": "doremi"}
LOSSES = {"code": 1.25, "wiki": 3}
SKILLS = {**NAMED, "data_sampling_method": "skill_graph"}
MATRIX = {"code": {"code": 1, "wiki": 0.5}, "wiki": {"wiki": 1, "code": -0.25}}
KEY = "data_sampling_reference_losses"


@pytest.mark.parametrize("is_file", [False, True])
def test_losses_come_from_a_section_or_a_file_in_the_order_of_the_domains(
    make_config, write, is_file
):
    given = write("losses.json", json.dumps(LOSSES)) if is_file else LOSSES
    mixing = make_config(**DOREMI, **{KEY: given}).mixing
    assert mixing.reference_losses == (3.0, 1.25)
    assert (mixing.target_losses, mixing.transfer_matrix) == ((), ())
    assert (mixing.step_size, mixing.window) == (None, None)


def test_a_path_is_relative_to_the_working_folder(make_config, write, monkeypatch, tmp_path):
    write("below/losses.json", json.dumps(LOSSES))
    monkeypatch.chdir(tmp_path)
    mixing = make_config(**DOREMI, **{KEY: "below/losses.json"}).mixing
    assert mixing.reference_losses == (3.0, 1.25)


def test_targets_come_from_a_report_of_evaluate(make_config, write):
    def part(**losses):
        entries = {name: {"loss": loss, "perplexity": 9.0} for name, loss in losses.items()}
        return {"domains": entries, "averages": {"loss": 2.0}}

    report = {
        "iteration": 100,
        "validation": part(wiki=2.5, code=1.0, other=7.0),
        "test": part(wiki=2.6, code=1.1),
        "config": {"model_args": {}},
    }
    method = {**NAMED, "data_sampling_method": "dynamic_batch_loading"}
    path = write("report.json", json.dumps(report))
    config = make_config(**method, data_sampling_target_losses=path, data_sampling_step_size=0.5)
    assert config.mixing.target_losses == (2.5, 1.0)
    assert config.mixing.step_size == 0.5
    del report["validation"]["domains"]["code"]
    path = write("report.json", json.dumps(report))
    mixing = make_config(**method, data_sampling_target_losses=path).mixing
    assert mixing.target_losses == (2.6, 1.1)
    path = write("report.json", json.dumps({"iteration": 100, "test": report["test"]}))
    assert make_config(**method, data_sampling_target_losses=path).mixing.target_losses == (
        2.6,
        1.1,
    )


@pytest.mark.parametrize("is_file", [False, True])
def test_a_matrix_has_a_row_per_trained_domain(make_config, write, is_file):
    given = write("matrix.json", json.dumps(MATRIX)) if is_file else MATRIX
    mixing = make_config(
        **SKILLS, data_sampling_transfer_matrix=given, data_sampling_window=5
    ).mixing
    assert mixing.transfer_matrix == ((1.0, -0.25), (0.5, 1.0))
    assert mixing.window == 5


@pytest.mark.parametrize(
    ("method", "key"),
    [
        ("doremi", KEY),
        ("dynamic_batch_loading", "data_sampling_target_losses"),
        ("skill_graph", "data_sampling_transfer_matrix"),
    ],
)
def test_a_method_without_what_it_needs_is_refused(problem, method, key):
    message = problem(**NAMED, data_sampling_method=method)
    assert message.startswith(f"data_sampling_method {method} needs {key}: a JSON file")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"wiki": 3.0}, f"{KEY} has no value for domain 'code'; the domains are wiki, code"),
        ({**LOSSES, "web": 1}, f"{KEY} names domain 'web'; the domains are wiki, code"),
        ({**LOSSES, "code": None}, "has no value for domain 'code'"),
        ({**LOSSES, "code": -1}, "at least 0, got -1"),
        ({**LOSSES, "code": True}, "at least 0, got True"),
        ("no/such/file.json", f"{KEY}: 'no/such/file.json': there is no such file; name a JSON"),
        (".", f"{KEY}: '.': there is no such file"),
    ],
)
def test_losses_that_do_not_fit_are_refused_by_their_place(problem, given, words):
    message = problem(**DOREMI, **{KEY: given})
    assert words in message
    assert message.startswith(KEY)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1, 2]", "must be a section of domain: a number, got [1, 2]"),
        ('{"wiki": 1, "code": NaN}', "not a readable JSON file (contains NaN"),
        ('{"wiki": 1, "code": 2', "not a readable JSON file (is not JSON"),
        ('{"wiki": 1, "code": 1e999}', "code must be a number, at least 0, got inf"),
        ('{"wiki": 1, "code": "x"}', "code must be a number, at least 0, got 'x'"),
        ('{"validation": {"domains": {"wiki": {"loss": 1}}}}', "has no value for domain 'code'"),
        (
            '{"validation": {"domains": {"wiki": {}, "code": {"loss": 1}}}}',
            "has no value for domain 'wiki'",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_its_name(problem, write, text, words):
    path = write("losses.json", text)
    message = problem(**DOREMI, **{KEY: path})
    assert message.startswith(KEY)
    assert path in message
    assert words in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"wiki": 3}, "wiki must be a section"),
        ({"wiki": {"wiki": 1}}, "row 'wiki' has no value for domain 'code'"),
        ({"wiki": {"wiki": 1, "code": "x"}}, "row 'wiki'.code must be a number"),
        ({"web": {}}, "names domain 'web'"),
    ],
)
def test_a_matrix_that_does_not_fit_is_refused_by_its_row(problem, change, words):
    message = problem(**SKILLS, data_sampling_transfer_matrix={**MATRIX, **change})
    assert message.startswith("data_sampling_transfer_matrix")
    assert words in message


def test_settings_of_other_methods_are_noted(make_config):
    keys = {KEY: LOSSES, "data_sampling_window": 2}
    config = make_config(**NAMED, data_sampling_method="exp3", **keys)
    assert f"'{KEY}' has no effect: exp3 does not use it" in config.notes
    assert "'data_sampling_window' has no effect: exp3 does not use it" in config.notes
    assert config.mixing.reference_losses == ()


@pytest.mark.parametrize(
    ("key", "value", "must"),
    [
        ("data_sampling_step_size", 0, "above 0, got 0"),
        ("data_sampling_window", 0, "at least 1, got 0"),
    ],
)
def test_numbers_out_of_range_are_refused(problem, key, value, must):
    assert problem(**DOREMI, **{KEY: LOSSES, key: value}).startswith(f"{key} must be {must}")


def checkpoint(folder, config):
    """Writes the part of a checkpoint that remembers a configuration."""
    configs = folder / "global_step4" / "configs"
    configs.mkdir(parents=True)
    (configs / "resolved.json").write_text(json.dumps(config.to_dict()))
    (folder / "latest").write_text("global_step4")


def test_a_run_resumes_without_the_file(make_config, problem, tmp_path):
    checkpoint(tmp_path, make_config(**DOREMI, **{KEY: LOSSES}))
    keys = {KEY: "gone.json", "load": str(tmp_path)}
    config = make_config(**DOREMI, **keys)
    assert config.mixing.reference_losses == (3.0, 1.25)
    assert any(note.startswith(f"{KEY}: the file is missing") for note in config.notes)
    others = {"train_data_paths": ["d/wiki/text", "d/web/text"]}
    assert "has no value for domain 'web'" in problem(**{**DOREMI, **keys, **others})


def test_a_run_resumes_without_the_file_of_a_matrix(make_config, tmp_path):
    checkpoint(tmp_path, make_config(**SKILLS, data_sampling_transfer_matrix=MATRIX))
    keys = {"data_sampling_transfer_matrix": "gone.json", "load": str(tmp_path)}
    config = make_config(**SKILLS, **keys)
    assert config.mixing.transfer_matrix == ((1.0, -0.25), (0.5, 1.0))


def test_a_checkpoint_of_another_method_has_no_numbers(make_config, problem, tmp_path):
    checkpoint(tmp_path, make_config(**NAMED, data_sampling_method="exp3"))
    message = problem(**DOREMI, **{KEY: "gone.json", "load": str(tmp_path)})
    assert "'gone.json': there is no such file" in message


def test_a_program_that_reads_a_model_does_not_need_the_file(minimal):
    values = {**minimal, **DOREMI, KEY: "gone.json"}
    config = resolve(NeoXArgs.from_dict(values), purpose=Purpose.READING)
    assert not any("gone" in note for note in config.notes)
