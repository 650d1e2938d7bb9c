"""Held-out samples are the same text for every run, spread over the whole of it."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.data.data_utils import build_evaluation_source
from megatron.data.errors import DataError
from megatron.data.held_out import HeldOutSamples, spread_evenly
from megatron.neox_arguments import NeoXArgs, resolve

TOKENIZER = SimpleNamespace(eod=0, vocab_size=1000)


def samples_of(indexed_dataset, documents=None, **options):
    return HeldOutSamples("books", "books", documents, indexed_dataset, seq_length=4, **options)


@pytest.mark.parametrize(
    ("count", "total", "picked"),
    [(1, 9, [4]), (2, 8, [2, 6]), (3, 10, [1, 5, 8]), (4, 4, [0, 1, 2, 3]), (3, 4, [0, 2, 3])],
)
def test_the_middle_of_equal_stretches_is_picked(count, total, picked):
    assert spread_evenly(np.arange(count), count=count, total=total).tolist() == picked


@given(st.integers(1, 500), st.integers(0, 10**9))
def test_what_is_picked_is_spread_evenly_and_never_twice(count, more):
    total = count + more
    picked = spread_evenly(np.arange(count), count=count, total=total)
    assert picked[0] >= 0
    assert picked[-1] < total
    assert set(np.diff(picked)) <= {total // count, total // count + 1}
    assert abs(picked[0] - (total - 1 - picked[-1])) <= 1  # as far from the end as from the start


def test_samples_follow_the_documents_of_the_file(write_dataset):
    indexed = write_dataset("books", [np.arange(0, 7), np.arange(7, 9), np.arange(9, 21)])
    assert samples_of(indexed).get_many(np.arange(5)).tolist() == [
        list(range(first, first + 5)) for first in (0, 4, 8, 12, 16)
    ]
    assert samples_of(indexed, range(1, 3)).get_many(np.arange(2)).tolist() == [
        [7, 8, 9, 10, 11],
        [11, 12, 13, 14, 15],
    ]
    limited = samples_of(indexed, max_samples=2)
    assert limited.num_samples == 2
    assert limited.get_many(np.arange(2))[:, 0].tolist() == [4, 12]
    assert samples_of(indexed, max_samples=99).num_samples == 5


def test_text_that_fills_no_sample_is_refused(write_dataset):
    with pytest.raises(DataError, match="domain books is shorter than one sample: 4 tokens"):
        samples_of(write_dataset("books", [np.arange(4)]))
    with pytest.raises(DataError, match="domain books is empty"):
        samples_of(write_dataset("none", [np.arange(9)]), range(1, 1))


@pytest.fixture
def measured(write_dataset, tmp_path):
    """The rows of domain ``of`` that an evaluation with some keys reads, over all its ranks."""
    names = ("books", "code", "other")
    for number, name in enumerate(names):
        documents = [np.arange(11) + 11 * n + 300 * number for n in range(20)]
        write_dataset(f"{name}/all", documents)
    prefix = {name: str(tmp_path / f"{name}/all") for name in names}

    def read(domains=("books", "code"), *, of=0, ranks=1, part="valid", **keys):
        paths = {f"{s}_data_paths": [prefix[d] for d in domains] for s in ("valid", "test")}
        base = {
            "num_layers": 1,
            "hidden_size": 8,
            "num_attention_heads": 2,
            "seq_length": 4,
            "max_position_embeddings": 4,
            "train_batch_size": 8,
            "train_micro_batch_size_per_gpu": 2,
            "train_iters": 3,
            "optimizer": {"type": "adam", "params": {"lr": 0.001}},
            "data_cache_dir": str(tmp_path / "cache"),
        }
        if "data_path" in keys:
            keys["data_path"] = prefix[keys["data_path"]]
            paths = {}
        elif "use_named_eval_datasets" not in keys:
            limits = {f"max_{s}_samples_per_dataset": 7 for s in ("validation", "test")}
            keys = {"use_named_eval_datasets": True, **limits, **keys}
        config = resolve(NeoXArgs.from_dict(base | paths | keys), world_size=ranks)
        rows = set()
        for rank in range(ranks):
            source = build_evaluation_source(
                config, part, dp_rank=rank, dp_size=ranks, tokenizer_info=TOKENIZER
            )
            for batch in source.batches(of):
                counted = batch.tokens[batch.loss_mask[:, 0] > 0]
                rows |= {tuple(row) for row in counted.tolist()}
        return rows

    return read


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 99},
        {"data_domain_names": ["prose", "programs"]},
        {"domains": ("books",)},
        {"domains": ("code", "other", "books"), "of": 2},
        {"ranks": 2},
        {"ranks": 4},
        {"part": "test"},
    ],
)
def test_neither_seed_nor_name_nor_other_data_nor_layout_change_what_is_measured(measured, other):
    expected = measured()
    assert len(expected) == 7
    assert measured(**other) == expected


@pytest.mark.parametrize("seed", [2, 3])
def test_nor_does_the_seed_where_data_are_split_or_blended(measured, seed):
    split = {"data_path": "books", "split": "70,30,0", "eval_iters": 1}
    assert measured(**split, seed=seed) == measured(**split)
    assert len(measured(**split)) == 8
    blend = {"use_named_eval_datasets": False, "eval_iters": 1, "valid_data_weights": [1, 3]}
    assert measured(**blend, of=1, seed=seed) == measured(**blend, of=1)
    assert len(measured(**blend, of=1)) == 6


def test_no_cached_order_decides_what_is_measured(measured, tmp_path):
    starts = sorted(row[0] for row in measured())
    # 219 tokens are 54 samples of 4; of 7 stretches the middle ones are 3, 11, 19, ...
    assert starts == [4 * sample for sample in (3, 11, 19, 27, 34, 42, 50)]
    assert not (tmp_path / "cache").exists()
