"""After a read had to wait for a disk, the samples of a step are asked for before they are read."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import pytest

from megatron.data import disk_waits
from megatron.data.disk_waits import STEPS_AFTER_A_WAIT, DiskWaits
from megatron.data.gpt2_dataset import GPT2Dataset
from megatron.data.indexed_dataset import MMapIndexedDataset
from megatron.data.mixed_batches import MixedBatches
from odm.schedule import Draw

SEQ_LENGTH = 1000


@pytest.fixture
def faults(monkeypatch):
    """The count of waits, which a test raises."""
    count = [0]
    monkeypatch.setattr(disk_waits, "major_faults", lambda: count[0])
    return count


@pytest.fixture
def datasets(write_dataset):
    """Two domains of 200 documents of 700 tokens, 280 kB each."""
    return [
        GPT2Dataset(
            name,
            name,
            None,
            write_dataset(name, [np.arange(700) + document for document in range(200)]),
            None,
            SEQ_LENGTH,
            1,
        )
        for name in ("books", "code")
    ]


class Asked:
    """Stands in for a memory map and notes the pages that are asked for."""

    def __init__(self) -> None:
        self.pages: set[int] = set()

    def madvise(self, advice: int, start: int, size: int) -> None:
        assert advice == mmap.MADV_WILLNEED
        assert start % mmap.PAGESIZE == 0
        last = (start + size - 1) // mmap.PAGESIZE
        self.pages |= set(range(start // mmap.PAGESIZE, last + 1))


def pages_of(dataset: GPT2Dataset, positions: np.ndarray) -> set[int]:
    """Pages that a read of the samples touches, found by reading the place of each token."""
    indexed = dataset.indexed_dataset
    places = np.arange(len(indexed.tokens))

    class Places:
        def __getattr__(self, name):
            return places if name == "tokens" else getattr(indexed, name)

    stand_in: Any = Places()
    dataset.indexed_dataset = stand_in
    try:
        touched = dataset.get_many(positions).ravel() * indexed.dtype.itemsize
    finally:
        dataset.indexed_dataset = indexed
    return set((touched // mmap.PAGESIZE).tolist())


def ask_instead(monkeypatch, datasets) -> list[Asked]:
    asked = [Asked() for _ in datasets]
    by_path = {d.indexed_dataset.path: one for d, one in zip(datasets, asked, strict=True)}
    found = property(lambda dataset: by_path[dataset.path])
    monkeypatch.setattr(MMapIndexedDataset, "token_map", found)
    return asked


def test_exactly_the_pages_of_the_samples_are_asked_for(datasets, monkeypatch):
    asked, _ = ask_instead(monkeypatch, datasets)
    positions = np.array([3, 50, 139, 7])
    datasets[0].will_need(positions)
    assert asked.pages == pages_of(datasets[0], positions)
    assert 5 < len(asked.pages) < 20


def test_asking_changes_nothing_and_is_no_error_at_the_end_of_a_file(datasets, write_dataset):
    everything = np.arange(datasets[0].samples_per_epoch)
    expected = datasets[0].get_many(everything)
    datasets[0].will_need(everything)
    assert np.array_equal(datasets[0].get_many(everything), expected)
    datasets[0].will_need(np.array([], dtype=np.int64))
    empty = write_dataset("empty", [])
    empty.will_need(np.array([0]), np.array([0]))


def test_reads_are_asked_for_from_a_wait_on_for_a_limited_number_of_steps(faults):
    waits = DiskWaits()
    assert not waits.next_step()
    with waits.watch():
        pass
    assert not waits.next_step()
    with waits.watch():
        faults[0] += 1
    asked = [waits.next_step() for _ in range(STEPS_AFTER_A_WAIT + 5)]
    assert asked == [True] * (STEPS_AFTER_A_WAIT - 1) + [False] * 6


def test_a_step_asks_for_the_samples_of_its_own_rank_alone_and_reads_the_same(
    datasets, faults, monkeypatch
):
    draw = Draw(1, np.array([0, 1, 1, 0, 1, 1, 0, 0]), np.array([0, 5, 6, 1, 7, 8, 2, 3]))
    source = MixedBatches(
        datasets,
        dp_rank=1,
        dp_size=2,
        micro_batch_size=2,
        gradient_accumulation_steps=2,
        eod_token=0,
    )
    asked = ask_instead(monkeypatch, datasets)

    first = [batch.tokens.tolist() for batch in source.batches(draw)]
    assert [one.pages for one in asked] == [set(), set()]
    faults[0] += 1  # outside a read: it does not count
    list(source.batches(draw))
    assert [one.pages for one in asked] == [set(), set()]

    original = GPT2Dataset.get_many

    def slow(dataset, positions):
        faults[0] += 1
        return original(dataset, positions)

    monkeypatch.setattr(GPT2Dataset, "get_many", slow)
    list(source.batches(draw))
    again = [batch.tokens.tolist() for batch in source.batches(draw)]
    assert again == first
    # slots 2, 3 and 6, 7 are this rank's
    assert asked[0].pages == pages_of(datasets[0], np.array([1, 2, 3]))
    assert asked[1].pages == pages_of(datasets[1], np.array([6]))
