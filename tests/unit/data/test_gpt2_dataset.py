import pickle

import numpy as np
import pytest
import torch

from megatron.data.errors import DataError
from megatron.data.gpt2_dataset import GPT2Dataset

SEQ_LENGTH = 7


def make_dataset(indexed, **changes):
    arguments = {"documents": None, "num_samples": None, "seq_length": SEQ_LENGTH, "seed": 3}
    arguments |= changes
    name = arguments.pop("name", "books")
    return GPT2Dataset(name, "toy", indexed_dataset=indexed, **arguments)


@pytest.fixture
def indexed(write_dataset):
    """40 documents of 1 to 20 tokens; no token occurs twice."""
    sizes = np.random.default_rng(0).integers(1, 21, 40)
    return write_dataset("toy", np.split(np.arange(sizes.sum()), np.cumsum(sizes)[:-1]))


def test_an_epoch_predicts_every_token_once_but_the_first_and_a_short_rest(indexed):
    dataset = make_dataset(indexed)
    num_tokens = len(indexed.tokens)
    assert len(dataset) == (num_tokens - 1) // SEQ_LENGTH
    predicted = dataset.get_many(np.arange(len(dataset)))[:, 1:].ravel()
    assert len(np.unique(predicted)) == len(predicted) == len(dataset) * SEQ_LENGTH
    assert num_tokens - 1 - len(predicted) < SEQ_LENGTH


def test_every_epoch_shows_the_same_samples_in_another_order(indexed):
    dataset = make_dataset(indexed)
    epochs = [
        dataset.get_many(np.arange(len(dataset)) + epoch * len(dataset)) for epoch in range(3)
    ]
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[1], epochs[2])
    for epoch in epochs:
        assert np.array_equal(np.sort(epoch[:, 0]), np.sort(epochs[0][:, 0]))


def test_a_position_is_found_without_what_came_before(indexed):
    positions = np.array([500, 3, 131, 3, 10**12])
    expected = [make_dataset(indexed)[int(position)]["text"] for position in positions]
    found = make_dataset(indexed).get_many(positions)
    assert np.array_equal(found, expected)
    assert found.dtype == np.int64
    assert found.shape == (5, SEQ_LENGTH + 1)


def test_order_depends_on_seed_and_domain_and_on_nothing_else(indexed):
    positions = np.arange(60)
    first = make_dataset(indexed).get_many(positions)
    assert np.array_equal(first, make_dataset(indexed, num_samples=1000).get_many(positions))
    assert not np.array_equal(first, make_dataset(indexed, seed=4).get_many(positions))
    assert not np.array_equal(first, make_dataset(indexed, name="code").get_many(positions))


def test_a_split_reads_its_own_documents_alone(indexed):
    dataset = make_dataset(indexed, documents=range(10, 20))
    allowed = np.concatenate(indexed[10:20])
    assert set(dataset.get_many(np.arange(len(dataset))).ravel()) <= set(allowed)
    assert dataset.num_documents == 10
    assert dataset.num_tokens == len(allowed)


def test_it_is_a_torch_dataset(indexed):
    dataset = make_dataset(indexed, num_samples=70)
    assert len(dataset) == 70
    assert len(list(dataset)) == 70
    loader = torch.utils.data.DataLoader(dataset, batch_size=2)
    batch = next(iter(loader))
    assert np.array_equal(batch["text"].numpy(), dataset.get_many(np.arange(2)))
    assert np.array_equal(pickle.loads(pickle.dumps(dataset))[9]["text"], dataset[9]["text"])


def test_no_positions_give_no_samples(indexed):
    assert make_dataset(indexed).get_many(np.array([], dtype=np.int64)).shape == (0, SEQ_LENGTH + 1)


def test_negative_positions_are_refused(indexed):
    with pytest.raises(IndexError, match="position -1; they count from 0"):
        make_dataset(indexed)[-1]


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([], r"domain books is empty \(0 documents, no tokens\)"),
        ([[], []], r"domain books is empty \(2 documents, no tokens\)"),
        ([[1, 2, 3], [4, 5, 6, 7]], "7 tokens in 2 documents, seq_length 7 needs 8"),
    ],
)
def test_a_domain_without_a_sample_is_named_with_its_numbers(write_dataset, documents, message):
    with pytest.raises(DataError, match=message):
        make_dataset(write_dataset("toy", documents))


def test_the_smallest_domain_has_one_sample(write_dataset):
    dataset = make_dataset(write_dataset("toy", [range(8)]))
    assert [dataset[position]["text"].tolist() for position in range(2)] == [list(range(8))] * 2
