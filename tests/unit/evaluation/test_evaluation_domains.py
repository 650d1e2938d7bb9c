"""Which data an evaluation measures."""

from __future__ import annotations

import pytest

from megatron.evaluation.domains import evaluation_parts, find_datasets
from megatron.neox_arguments import ConfigError, NeoXArgs, resolve
from tests.tiny import DOMAINS, tiny_config, write_tiny_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_tiny_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def parts(corpus, tmp_path, monkeypatch):
    """{name: {domain: prefix}} of the parts that some ``eval_domains`` mean."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)

    def find(*entries: str, **changes):
        values = tiny_config(corpus, tmp_path, eval_domains=list(entries) or None, **changes)
        found = {}
        for part in evaluation_parts(resolve(NeoXArgs.from_dict(values))):
            data = part.config.data
            names = getattr(data, f"{part.split}_domains")
            prefixes = getattr(data, f"{part.split}_paths")
            found[part.name] = dict(zip(names, prefixes, strict=True))
            assert len(getattr(data, f"{part.split}_weights")) == len(names)
        return found

    return find


def test_all_configured_domains_are_measured_unless_tasks_are_asked_for(parts, corpus):
    assert parts() == {
        "validation": dict(zip(DOMAINS, corpus["valid"], strict=True)),
        "test": dict(zip(DOMAINS, corpus["test"], strict=True)),
    }
    assert parts(eval_tasks=["piqa"]) == {}


def test_a_name_picks_a_configured_domain_of_both_splits(parts, corpus):
    assert parts("noise", "letters", eval_tasks=["piqa"]) == {
        "validation": {"letters": corpus["valid"][0], "noise": corpus["valid"][2]},
        "test": {"letters": corpus["test"][0], "noise": corpus["test"][2]},
    }


def test_a_prefix_is_measured_under_its_name(parts, corpus):
    law = corpus["train"][1]
    assert parts(f"law={law}") == {"datasets": {"law": law}}
    assert parts(f"law={law}.bin", "digits")["datasets"] == {"law": law}
    assert parts(law) == {"datasets": {"digits": law}}


def test_other_data_are_measured_whole_and_not_cut_by_documents(corpus, tmp_path):
    values = tiny_config(corpus, tmp_path, data_path=corpus["train"][0])
    for key in ("train_data_paths", "valid_data_paths", "test_data_paths", "data_sampling_method"):
        del values[key]
    for key in ("use_named_train_datasets", "use_named_eval_datasets", "mixed_minibatches"):
        values[key] = False
    config = resolve(NeoXArgs.from_dict({**values, "eval_domains": [f"x={corpus['test'][0]}"]}), 1)
    (part,) = evaluation_parts(config)
    assert part.config.data.split is None
    assert part.config.data.use_named_eval_datasets
    assert config.data.split is not None


def test_a_folder_means_the_data_sets_in_it(corpus, tmp_path):
    folder = str(tmp_path)
    root = corpus["valid"][0].removesuffix("/letters/letters_text_document")
    assert find_datasets(f"held={root}") == [
        (f"held/{name}", f"{root}/{name}/{name}_text_document") for name in sorted(DOMAINS)
    ]
    assert find_datasets(f"{root}/noise") == [("noise", corpus["valid"][2])]
    with pytest.raises(ConfigError, match=r"no tokenized data at .*preprocess_data"):
        find_datasets(folder)
    (tmp_path / "noise").symlink_to(f"{root}/noise")
    assert find_datasets(folder) == [("noise", f"{folder}/noise/noise_text_document")]


def test_a_path_that_exists_may_hold_an_equals_sign_and_hidden_data_do_not_count(corpus, tmp_path):
    for name in ("a=b", ".ipynb_checkpoints"):
        (tmp_path / name).mkdir()
        for suffix in (".bin", ".idx"):
            (tmp_path / name / f"x{suffix}").symlink_to(f"{corpus['valid'][0]}{suffix}")
    assert find_datasets(str(tmp_path / "a=b")) == [("a=b", f"{tmp_path}/a=b/x")]
    assert find_datasets(str(tmp_path / "a=b/x")) == [("a=b", f"{tmp_path}/a=b/x")]
    assert find_datasets(f"n={tmp_path}") == [("n", f"{tmp_path}/a=b/x")]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            ["digit"],
            r"^eval_domains: there is no domain 'digit'; did you mean digits\? "
            r"known: letters, digits, noise; for other data write name=path",
        ),
        (["xyz"], r"^eval_domains: there is no domain 'xyz'; known: letters, digits, noise; for"),
        (["a=x/y"], r"^eval_domains: a=x/y: no tokenized data at x/y"),
    ],
)
def test_what_is_not_there_is_refused(parts, entries, message):
    with pytest.raises(ConfigError, match=message):
        parts(*entries)


def test_a_run_without_held_out_data_has_nothing_to_evaluate_but_tasks(parts, corpus):
    none = {"valid_data_paths": None, "test_data_paths": None}
    with pytest.raises(ConfigError, match=r"^valid_data_paths: there is no held-out data .* split"):
        parts(**none)
    assert parts(**none, eval_tasks=["piqa"]) == {}
    assert parts(**none, split="8,1,1")["test"] == dict(zip(DOMAINS, corpus["train"], strict=True))


def test_two_data_sets_of_one_name_are_refused(parts, corpus):
    with pytest.raises(ConfigError, match="'x' names two data sets"):
        parts(f"x={corpus['train'][0]}", f"x={corpus['train'][1]}")
