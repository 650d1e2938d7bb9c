import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron.data import blendable_dataset
from megatron.data.blendable_dataset import BlendableDataset, apportion
from megatron.data.errors import DataError


def make_datasets(*lengths):
    return [[(name, item) for item in range(length)] for name, length in enumerate(lengths)]


@settings(max_examples=100)
@given(weights=st.lists(st.floats(0.001, 10), min_size=1, max_size=20), total=st.integers(0, 1000))
def test_apportioned_counts_are_whole_and_close(weights, total):
    shares = np.array(weights) / sum(weights)
    counts = apportion(shares, total)
    assert counts.sum() == total
    assert (np.abs(counts - shares * total) < 1 + 1e-6).all()


def test_a_blend_holds_the_shares_of_its_weights_and_no_sample_twice():
    blend = BlendableDataset(make_datasets(30, 60, 10), [3, 6, 1])
    items = list(blend)
    assert len(blend) == 100
    assert len(set(items)) == 100
    first_half = np.bincount([name for name, _ in items[:50]], minlength=3)
    assert (np.abs(first_half - [15, 30, 5]) < 12).all()


def test_an_item_depends_on_seed_and_index_alone():
    datasets = make_datasets(300, 300)
    blend = BlendableDataset(datasets, [1, 1])
    assert blend[123] == BlendableDataset(datasets, [1, 1])[123]
    other = BlendableDataset(datasets, [1, 1], seed=2)
    assert [other[index] for index in range(100)] != [blend[index] for index in range(100)]


@pytest.mark.parametrize("block_size", [20, 30])
def test_blocks_continue_where_the_last_one_stopped(monkeypatch, block_size):
    monkeypatch.setattr(blendable_dataset, "MAX_BLOCK_SIZE", block_size)
    items = list(BlendableDataset(make_datasets(60, 40), [6, 4]))
    assert len(set(items)) == 100
    for first in range(0, 100, block_size):
        names = [name for name, _ in items[first : first + block_size]]
        assert names.count(0) == 6 * len(names) // 10


def test_more_than_255_datasets():
    blend = BlendableDataset(make_datasets(*[2] * 1000), [1] * 1000)
    assert len({name for name, _ in blend}) == 1000


def test_a_small_dataset_with_a_large_weight_repeats():
    items = list(BlendableDataset(make_datasets(5, 95), [1, 1]))
    assert {item for item in items if item[0] == 0} == set(make_datasets(5)[0])


@pytest.mark.parametrize(
    ("lengths", "weights", "message"),
    [
        ((1, 2), [1], "expected 2 weights"),
        ((), [], "all weights are 0"),
        ((1, 2), [0, 0], "all weights are 0"),
        ((1, 2), [1e308, 1e308], "sum is too large"),
        ((1, 2), [-1, 2], "not negative"),
        ((1, 2), [1, float("nan")], "finite"),
        ((1, 0), [1, 1], "data set 1 is empty"),
    ],
)
def test_bad_blends_are_refused(lengths, weights, message):
    with pytest.raises(DataError, match=message):
        BlendableDataset(make_datasets(*lengths), weights)


def test_the_end_is_an_index_error():
    with pytest.raises(IndexError, match="no item 3, there are 3"):
        BlendableDataset(make_datasets(1, 2), [1, 1])[3]
