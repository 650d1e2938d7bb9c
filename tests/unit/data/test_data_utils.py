import logging
import os
from types import SimpleNamespace

import numpy as np
import pytest

from megatron.data.data_utils import (
    build_evaluation_source,
    build_held_out_source,
    build_train_source,
    weights_by_num_docs,
)
from megatron.data.errors import DataError
from megatron.data.metadata import DatasetMetadata, TokenizerIdentity, write_metadata
from megatron.data.open_files import reserve_open_files
from megatron.data.shares import split_boundaries
from megatron.neox_arguments import ConfigError, NeoXArgs, resolve
from megatron.sizing.mixture import describe_mixture, training_sizes

TOKENIZER = SimpleNamespace(eod=0, vocab_size=500)
DOMAINS = ("books", "code")


def make_config(**values):
    base = {
        "num_layers": 1,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "seq_length": 4,
        "max_position_embeddings": 4,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 2,
        "train_iters": 3,
        "eval_iters": 2,
        "optimizer": {"type": "adam", "params": {"lr": 0.001}},
    }
    return resolve(NeoXArgs.from_dict(base | values), world_size=2)


@pytest.fixture
def paths(write_dataset, tmp_path):
    """Training, validation and test data of two domains; every document has 10 tokens."""
    lists = {}
    for split, num_documents in {"train": (4, 12), "valid": (8, 6), "test": (3, 3)}.items():
        lists[f"{split}_data_paths"] = []
        for domain, count in zip(DOMAINS, num_documents, strict=True):
            name = f"{split}/{domain}/{domain}_text_document"
            write_dataset(name, [np.arange(10) + 10 * number for number in range(count)])
            lists[f"{split}_data_paths"].append(str(tmp_path / name))
    return lists


def build_training(config, *, tokenizer=TOKENIZER):
    return build_train_source(config, dp_rank=0, dp_size=2, tokenizer_info=tokenizer)


def build(config, split="train", *, tokenizer=TOKENIZER):
    if split == "train":
        return build_training(config, tokenizer=tokenizer)[0]
    return build_evaluation_source(config, split, dp_rank=0, dp_size=2, tokenizer_info=tokenizer)


@pytest.mark.parametrize(
    ("keys", "run_length"),
    [
        ({}, 1),
        ({"use_named_train_datasets": True}, 8),
        ({"use_named_train_datasets": True, "mixed_minibatches": True}, 2),
        ({"use_named_train_datasets": True, "mixed_batches": True}, 1),
    ],
)
def test_the_mode_decides_how_many_slots_share_a_domain(paths, keys, run_length):
    config = make_config(**paths, **keys)
    source, mixture = build_training(config)
    assert source.domains == tuple(mixture.domains) == DOMAINS
    assert source.global_batch_size == 8
    assert config.mixing.run_length == run_length
    batches = list(source.batches(mixture.draw(10, 8, run_length)))
    assert [tuple(batch.tokens.shape) for batch in batches] == [(2, 4), (2, 4)]


def test_the_configured_method_gets_its_options(paths):
    _, mixture = build_training(
        make_config(
            **paths,
            use_named_train_datasets=True,
            mixed_minibatches=True,
            train_data_weights=[3, 1],
            data_sampling_method="smoothed_mean",
            data_sampling_smoothing_factor=0.5,
            data_sampling_warmup_steps=10,
            data_sampling_update_frequency=3,
            seed=7,
        )
    )
    facts = mixture.describe()
    assert facts["method"] == "smoothed_mean"
    assert facts["options"]["smoothing_factor"] == 0.5
    assert facts["initial_weights"] == [3.0, 1.0]
    assert (facts["warmup_steps"], facts["update_frequency"], facts["seed"]) == (10, 3, 7)


NAMED = {"use_named_train_datasets": True}


def test_learning_curve_gets_its_objective_and_the_length_of_the_run(paths):
    keys = {
        "data_sampling_method": "learning_curve",
        "data_sampling_objective": {"perplexity": 0.25, "weights": {"code": 3}},
        "data_sampling_max_ratio": 2,
        "train_iters": 160,
        "lr_decay_iters": 160,
    }
    _, mixture = build_training(make_config(**paths, **NAMED, **keys))
    facts = mixture.describe()
    assert facts["total_steps"] == 160
    assert facts["options"] == {
        "perplexity_share": 0.25,
        "objective_weights": [1.0, 3.0],
        "anchor": "initial",
        "max_ratio": 2.0,
        "exponent": 0.5,
    }
    for step in range(1, 161):  # alike but for what they count
        mixture.draw(step, 8)
        mixture.observe(step, np.full(2, 5.0 - 0.5 * np.log(step)))
    books, code = mixture.weights
    assert code / books == pytest.approx(3.0**0.5, rel=0.01)


def test_the_worth_of_repeated_text_is_judged_by_the_sizes_of_the_domains(paths):
    keys = {"data_sampling_method": "learning_curve", "data_sampling_repetition_decay": 3}
    keys |= {"train_iters": 160, "lr_decay_iters": 160}
    _, mixture = build_training(make_config(**paths, **NAMED, **keys))
    options = mixture.describe()["options"]
    assert (options["repetition_decay"], options["domain_sizes"]) == (3.0, [9, 29])
    for step in range(1, 161):  # both fall alike, and books is read three times as often
        mixture.draw(step, 8)
        mixture.observe(step, np.full(2, 5.0 - 0.5 * np.log(step)))
    books, code = mixture.weights
    assert books < 0.5 * code


def test_the_mixture_keeps_the_limits_of_the_configuration(paths):
    keys = {
        "data_sampling_min_weight": 0.1,
        "data_sampling_max_weight": {"code": 0.75},
        "data_sampling_max_epochs": {"books": 2},
    }
    source, mixture = build_training(make_config(**paths, **NAMED, **keys))
    # 3 iterations of 8 samples; books has 9 samples, so code may serve 24 / 29 epochs
    assert source.samples_per_epoch.tolist() == [9, 29]
    assert mixture.describe()["constraints"] == [
        {"name": "floor", "minimum": [0.1, 0.1]},
        {"name": "ceiling", "maximum": [1.0, 0.75]},
        {
            "name": "epoch_cap",
            "max_epochs": [2.0, 24 / 29],
            "domain_sizes": [9, 29],
            "total_samples": 24,
        },
    ]


def test_a_limit_holds_before_anything_was_learnt(paths):
    keys = {**NAMED, "train_data_weights": [9, 1], "data_sampling_max_epochs": 1}
    # at most 9 of 24 samples
    _, mixture = build_training(make_config(**paths, **keys))
    assert mixture.weights[0] == pytest.approx(9 / 24)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"data_sampling_max_epochs": 1, "train_iters": 10},
            r"data_sampling_max_epochs: .* 1 epochs of the domains are 38 samples, the run draws "
            r"80; raise max_epochs to at least 2\.105 ",
        ),
        (
            {"data_sampling_max_epochs": {"books": 1}, "data_sampling_max_weight": {"code": 0.5}},
            r"data_sampling_max_epochs: does not go with the other limits: .* weight to 0\.875;",
        ),
    ],
)
def test_too_little_data_for_the_limits_is_an_error_before_training(paths, keys, message):
    with pytest.raises(ConfigError, match=message):
        build(make_config(**paths, **NAMED, **keys))


def test_static_weights_are_a_mixture_that_does_not_learn(paths):
    _, mixture = build_training(make_config(**paths, train_data_weights=[3, 1]))
    mixture.draw(1, 8)
    assert mixture.observe(1, [9.0, 1.0]).weights_after.tolist() == [0.75, 0.25]


@pytest.mark.parametrize(
    ("value", "shares"),
    [  # books has 9 samples, code 29; the run draws 24
        ("uniform", (0.5, 0.5)),
        ("natural", (9 / 38, 29 / 38)),
        ({"temperature": 2}, (3 / (3 + 29**0.5), 29**0.5 / (3 + 29**0.5))),
        ({"unimax": 1}, (9 / 24, 15 / 24)),
    ],
)
def test_weights_follow_the_samples_of_the_domains(paths, value, shares):
    _, mixture = build_training(make_config(**paths, train_data_weights=value))
    assert mixture.weights.tolist() == pytest.approx(shares)
    learning = make_config(
        **paths, **NAMED, train_data_weights=value, data_sampling_method="smoothed_mean"
    )
    assert build_training(learning)[1].weights.tolist() == pytest.approx(shares)


def test_unimax_needs_samples_for_the_whole_run(paths):
    config = make_config(**paths, train_data_weights={"unimax": 0.5})
    with pytest.raises(ConfigError, match=r"train_data_weights: unimax: .* 19 samples.* 24"):
        build(config)


def test_a_schedule_plans_the_iterations_that_its_file_names(paths, tmp_path):
    file = tmp_path / "schedule.yml"
    file.write_text(
        "schedule:\n- {tokens: 0, weights: {books: 1, code: 1}}\n"
        "- {tokens: 32, weights: {books: 0, code: 1}}\n"  # an iteration has 8 samples of 4 tokens
    )
    config = make_config(**paths, **NAMED, train_data_weights={"schedule": str(file)})
    _, mixture = build_training(config)
    assert mixture.mixer.name == "schedule"
    found = [mixture.weights.tolist()]
    for step in (1, 2):
        mixture.draw(step, 8)
        found.append(mixture.observe(step, [1.0, 1.0]).weights_after.tolist())
    assert found == [[0.5, 0.5], [0.0, 1.0], [0.0, 1.0]]


def test_a_guarded_run_ends_with_the_counts_of_its_initial_weights(paths):
    keys = {**NAMED, "mixed_minibatches": True, "data_sampling_method": "smoothed_mean"}
    keys |= {"train_data_weights": [1, 3], "data_sampling_guard": "anchor", "train_iters": 20}
    _, mixture = build_training(make_config(**paths, **keys))
    assert mixture.describe()["constraints"][0] == {
        **{"name": "guard", "total_steps": 20, "samples_per_step": 8, "run_length": 2},
        **{"decision_point": 0.6, "first_look": 0.1, "confidence": 1.64},
        **{"perplexity_share": 0.5, "objective_weights": []},
    }
    for step in range(1, 21):
        mixture.draw(step, 8, 2)
        mixture.observe(step, [9.0, 1.0])
    assert mixture.cursors.tolist() == [40, 120]


def test_the_table_before_a_run_is_what_the_run_reads(paths):
    keys = {**NAMED, "train_data_weights": {"unimax": 1}, "data_sampling_max_weight": {"code": 0.6}}
    config = make_config(**paths, **keys)
    source, mixture = build_training(config)
    heading, titles, *rows = describe_mixture(config)
    assert heading == "mixture of 96 tokens (unimax 1; constant weights):"
    assert titles.split() == ["domain", "weight", "share", "tokens", "epochs"]
    assert [row.split() for row in rows] == [
        ["books", "0.375", "0.4000", "38", "1.07"],
        ["code", "0.625", "0.6000", "58", "0.497"],
    ]
    assert mixture.weights.tolist() == pytest.approx([0.4, 0.6])
    assert [size.samples for size in training_sizes(config)] == source.samples_per_epoch.tolist()


def test_the_table_has_the_mean_of_a_schedule(paths, tmp_path):
    file = tmp_path / "schedule.yml"
    points = "[{iterations: 0, weights: {books: 1, code: 1}}, %s]"
    for interpolation, later, share in (
        ("constant", "{iterations: 2, weights: {books: 1, code: 0}}", "0.6667"),
        ("linear", "{iterations: 6, weights: {books: 1, code: 0}}", "0.6250"),
    ):
        file.write_text(f"interpolation: {interpolation}\nschedule: {points % later}\n")
        config = make_config(**paths, **NAMED, train_data_weights={"schedule": str(file)})
        heading, _, books, _ = describe_mixture(config)
        assert "mean over the run" in heading
        assert books.split()[:3] == ["books", "1", share]


def test_what_split_holds_out_is_weighted_by_the_same_rule(write_dataset, tmp_path):
    prefixes = [str(tmp_path / f"{name}/all") for name in "ab"]
    for name, count in zip("ab", (20, 60), strict=True):
        write_dataset(f"{name}/all", [np.arange(10)] * count)
    keys = {"train_data_paths": prefixes, "split": "80,20,0"}
    config = make_config(**keys, train_data_weights="natural")
    assert [size.samples for size in training_sizes(config)] == [39, 119]
    # 2 iterations of 8 samples, of text of 40 and of 120 tokens
    assert build(config, "valid").num_samples == (4, 12)
    equal = make_config(**keys, train_data_weights={"unimax": 4})
    assert build(equal, "valid").num_samples == (8, 8)


def test_weights_by_number_of_documents(paths):
    _, mixture = build_training(make_config(**paths, weight_by_num_documents=True))
    # (1/4, 3/4) times (3/4, 1/4): both 3/16
    assert mixture.weights.tolist() == pytest.approx([0.5, 0.5])


def test_names_given_in_the_configuration_are_used(paths):
    config = make_config(**paths, data_domain_names=["prose", "programs"])
    assert build(config).domains == ("prose", "programs")
    assert build(config, "valid").domains == ("prose", "programs")


def test_named_evaluation_is_over_everything_or_the_given_number_of_samples(paths):
    config = make_config(
        **paths, use_named_eval_datasets=True, max_validation_samples_per_dataset=15
    )
    assert build(config, "valid").num_samples == (15, 14)
    assert build(config, "test").num_samples == (7, 7)


@pytest.mark.parametrize(
    ("keys", "valid", "test"),
    [
        ({"eval_iters": 1}, (8, 8), (7, 7)),  # global batches of 8 samples
        ({"eval_iters": 2}, (16, 14), (7, 7)),
        ({"eval_iters": 1, "max_validation_samples_per_dataset": 10}, (10, 10), (7, 7)),
        ({"eval_iters": 1, "max_test_samples_per_dataset": 2}, (8, 8), (2, 2)),
        ({"eval_iters": None}, (19, 14), (7, 7)),
    ],
)
def test_eval_iters_limits_named_data_where_it_was_written(paths, keys, valid, test):
    config = make_config(**paths, use_named_eval_datasets=True, **keys)
    assert build(config, "valid").num_samples == valid
    assert build(config, "test").num_samples == test


def test_a_checkpoint_on_other_ranks_is_measured_in_the_batches_of_its_training(paths):
    config = make_config(**paths, use_named_eval_datasets=True, eval_iters=1)
    source = build_evaluation_source(
        config, "valid", dp_rank=0, dp_size=1, tokenizer_info=TOKENIZER, batch_size=3
    )
    assert source.num_samples == (3, 3)


def test_unnamed_evaluation_shares_the_batches_of_gpt_neox_by_weight(paths):
    config = make_config(**paths, valid_data_weights=[3, 1])
    # eval_iters * train_batch_size = 16 samples
    assert build(config, "valid").num_samples == (12, 4)


def test_unnamed_evaluation_of_no_iterations_is_left_out(paths):
    assert build(make_config(**paths, eval_iters=0), "valid") is None
    named = make_config(**paths, eval_iters=0, use_named_eval_datasets=True)
    assert build(named, "valid").num_samples == (19, 14)


def test_evaluation_tells_bytes_per_token_where_the_data_do(paths):
    prefix = paths["valid_data_paths"][0]
    identity = TokenizerIdentity("CharLevelTokenizer", 500)
    write_metadata(prefix, DatasetMetadata(8, 80, 200, 79, identity))
    stale = paths["valid_data_paths"][1]
    write_metadata(stale, DatasetMetadata(8, 81, 200, 79, identity))
    assert build(make_config(**paths), "valid").text_bytes_per_token == (2.5, None)


def test_ids_outside_the_vocabulary_are_refused_at_the_start(paths):
    prefix = paths["train_data_paths"][1]
    write_metadata(
        prefix, DatasetMetadata(12, 120, 200, 119, TokenizerIdentity("HFTokenizer", 8000))
    )
    small = SimpleNamespace(eod=0, vocab_size=119)
    with pytest.raises(DataError, match=r"domain code has token id 119, .* has 119 ids"):
        build(make_config(**paths), tokenizer=small)


def test_data_of_another_tokenizer_are_said_aloud(paths, caplog):
    tokenizer = SimpleNamespace(eod=0, vocab_size=500, fingerprint="a" * 64)
    for prefix, digest, largest_id in zip(
        paths["train_data_paths"], ("a" * 64, "b" * 64), (39, 119), strict=True
    ):
        identity = TokenizerIdentity("HFTokenizer", 500, digest)
        tokens = 40 if largest_id == 39 else 120
        write_metadata(prefix, DatasetMetadata(4, tokens, 200, largest_id, identity))
    with caplog.at_level(logging.WARNING):
        build(make_config(**paths), tokenizer=tokenizer)
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith(f"{paths['train_data_paths'][1]}: tokenized with another tokenizer")
    assert "1 of 2 data sets" in told


def test_more_domains_than_the_shell_lets_a_program_open(write_dataset, tmp_path):
    resource = pytest.importorskip("resource")
    prefixes = [str(tmp_path / f"d{number}/all") for number in range(20)]
    for number in range(20):
        write_dataset(f"d{number}/all", [np.arange(20)])
    splits = ("train", "valid", "test")
    config = make_config(**{f"{split}_data_paths": prefixes for split in splits})
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        open_now = len(os.listdir("/dev/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 30, before[1]))
        assert len(build(config).domains) == 20
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_more_files_than_the_system_allows_are_an_error_with_the_cure(monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 1024))
    with pytest.raises(DataError, match=r"3000 files .* 1024; raise the limit"):
        reserve_open_files(3000)


def test_a_missing_file_is_named(paths):
    paths["train_data_paths"][0] += "_typo"
    with pytest.raises(DataError, match=r"books_text_document_typo\.idx: no such file"):
        build(make_config(**paths))


def test_training_needs_data():
    with pytest.raises(ConfigError, match="no training data"):
        build(make_config())


def test_validation_on_training_data_is_said_aloud(paths, caplog):
    paths["valid_data_paths"][1] = paths["train_data_paths"][1]
    with caplog.at_level(logging.WARNING):
        build(make_config(**paths), "valid")
    assert "is training data too; the valid loss of domain code" in caplog.text
    assert "books" not in caplog.text


def test_unnamed_data_in_one_folder_are_told_apart_by_number(write_dataset, tmp_path):
    prefixes = [str(tmp_path / f"all/{name}") for name in "ab"]
    for name in "ab":
        write_dataset(f"all/{name}", [np.arange(20)])
    config = make_config(
        train_data_paths=prefixes, valid_data_paths=prefixes, test_data_paths=prefixes
    )
    assert build(config).domains == ("0:all", "1:all")


def test_one_path_is_split_by_documents(write_dataset, tmp_path):
    write_dataset("wiki/all", [np.arange(10) + 10 * number for number in range(20)])
    config = make_config(data_path=str(tmp_path / "wiki/all"), split="90,10,0")
    train, valid = build(config), build(config, "valid")
    assert train.domains == valid.domains == ("wiki",)
    assert train.samples_per_epoch.tolist() == [(18 * 10 - 1) // 4]
    assert valid.num_samples == (4,)
    read = {int(token) for batch in valid.batches(0) for token in batch.tokens[batch.loss_mask > 0]}
    assert min(read) >= 180
    assert build(config, "test") is None


@pytest.mark.parametrize("size", [3, 4])  # a sample has 5 tokens
def test_a_part_of_a_split_too_short_to_evaluate_is_left_out_aloud(
    size, write_dataset, tmp_path, caplog
):
    write_dataset("wiki/all", [np.arange(size)] * 100)
    config = make_config(data_path=str(tmp_path / "wiki/all"), split="98,1,1")
    with caplog.at_level(logging.WARNING):
        assert build(config, "valid") is None
    assert f"the valid part 1 document with {size} tokens" in caplog.text


def test_a_part_that_gets_no_document_is_left_out_aloud_if_one_was_asked_for(
    write_dataset, tmp_path, caplog
):
    write_dataset("wiki/all", [np.arange(10)] * 12)
    config = make_config(data_path=str(tmp_path / "wiki/all"), split="99,1,0")
    with caplog.at_level(logging.WARNING):
        assert build(config, "test") is None
        assert not caplog.text
        assert build(config, "valid") is None
    assert "the valid part 0 documents with 0 tokens" in caplog.text


def test_each_of_several_data_sets_is_split_by_documents(write_dataset, tmp_path):
    prefixes = [str(tmp_path / f"{name}/all") for name in "ab"]
    for name, first in zip("ab", (0, 200), strict=True):
        write_dataset(f"{name}/all", [np.arange(10) + 10 * n + first for n in range(20)])
    config = make_config(
        train_data_paths=prefixes,
        split="90,10,0",
        use_named_train_datasets=True,
        use_named_eval_datasets=True,
    )
    train, valid = build(config), build(config, "valid")
    assert train.domains == valid.domains == ("a", "b")
    assert train.samples_per_epoch.tolist() == [(18 * 10 - 1) // 4] * 2
    assert valid.num_samples == (4, 4)
    assert build(config, "test") is None
    for domain_id, first in enumerate((180, 380)):
        read = [
            int(token)
            for batch in valid.batches(domain_id)
            for token in batch.tokens[batch.loss_mask > 0]
        ]
        assert read == list(range(first, first + len(read)))


def test_a_data_set_too_short_for_a_held_out_part_leaves_the_others_theirs(
    write_dataset, tmp_path, caplog
):
    prefixes = [str(tmp_path / f"{name}/all") for name in "ab"]
    write_dataset("a/all", [np.arange(10)] * 2)
    write_dataset("b/all", [np.arange(10)] * 20)
    config = make_config(
        train_data_paths=prefixes, split="90,10,0", train_data_weights=[3, 1], eval_iters=1
    )
    with caplog.at_level(logging.WARNING):
        valid = build(config, "valid")
    assert (valid.domains, valid.num_samples) == (("b",), (4,))
    assert f"{prefixes[0]}: split '90,10,0' gives the valid part 0 documents" in caplog.text


def test_a_split_without_training_documents_is_refused(write_dataset, tmp_path):
    write_dataset("wiki/all", [np.arange(30)] * 4)
    config = make_config(data_path=str(tmp_path / "wiki/all"), split="0,1,1")
    with pytest.raises(DataError, match=r"'0,1,1' leaves no training documents of .*all \(4 doc"):
        build(config)


def test_split_counts_documents_and_moves_boundaries_by_what_rounding_missed():
    assert boundaries_of("90,5,5", 101) == [0, 91, 96, 101]
    assert boundaries_of("8/1/1", 17) == [0, 13, 15, 17]
    assert boundaries_of("1", 10) == [0, 10, 10, 10]
    assert boundaries_of("8,2", 10) == [0, 8, 10, 10]
    assert boundaries_of("80/10/10", 10) == [0, 8, 9, 10]


def test_no_document_is_in_two_parts_of_a_split():
    # GPT-NeoX gives -1, 1, 3 here: the last document is validated on and tested on
    assert boundaries_of("0,1,1", 3) == [0, 0, 1, 3]


def boundaries_of(split: str, size: int) -> list[int]:
    """Cuts documents by the text of a configuration."""
    return split_boundaries(make_config(data_path="d/text", split=split).data.split, size)


def test_weights_by_number_of_documents_follow_the_formula():
    assert weights_by_num_docs([10]) == [1.0]
    assert weights_by_num_docs([1, 3], alpha=1.0) == pytest.approx([0.5, 0.5])
    assert weights_by_num_docs([1, 3], alpha=0.0) == pytest.approx([0.75, 0.25])
    with pytest.raises(DataError, match="no documents"):
        weights_by_num_docs([0, 0])


HELD_OUT = {
    "use_named_train_datasets": True,
    "use_named_eval_datasets": True,
    "data_sampling_method": "smoothed_mean",
    "data_sampling_reward": "heldout",
    "data_sampling_heldout_samples": 8,
}


def build_windows(config, *, dp_rank=0, dp_size=1, domains=DOMAINS):
    ranks = {"dp_rank": dp_rank, "dp_size": dp_size}
    return build_held_out_source(config, domains, tokenizer_info=TOKENIZER, **ranks)


def test_windows_follow_the_order_of_the_training_domains(paths):
    keys = {**paths, **HELD_OUT, "valid_data_paths": paths["valid_data_paths"][::-1]}
    source = build_windows(make_config(**keys))
    assert source.domains == DOMAINS
    assert source.num_samples == (8, 8)


def test_ranks_share_the_chosen_windows(paths):
    config = make_config(**paths, **HELD_OUT)
    domains, windows = np.array([0, 1, 1, 0, 1]), np.array([3, 0, 7, 1, 2])
    seen = {}
    for rank in range(2):
        source = build_windows(config, dp_rank=rank, dp_size=2)
        batches = list(source.chosen(domains, windows, ids=np.arange(5)))
        assert len(batches) == 2
        for batch in batches:
            for row in np.flatnonzero(batch.loss_mask.any(dim=1)):
                seen[int(batch.domain_ids[row])] = batch.tokens[row].tolist()
    (whole,) = [list(build_windows(config).batches(k)) for k in range(1)]
    assert sorted(seen) == [0, 1, 2, 3, 4]
    assert seen[3] == whole[0].tokens[1].tolist()


def test_nothing_is_measured_unless_it_is_asked_for(paths):
    keys = {key: value for key, value in HELD_OUT.items() if "held" not in str((key, value))}
    assert build_windows(make_config(**paths, **keys)) is None


def test_a_share_of_split_that_fills_no_sample_is_refused_with_the_domain(paths):
    keys = {"train_data_paths": paths["train_data_paths"], **HELD_OUT, "split": "90,5,5"}
    with pytest.raises(ConfigError, match="data_sampling_reward: no validation data of books; "):
        build_windows(make_config(**keys))
