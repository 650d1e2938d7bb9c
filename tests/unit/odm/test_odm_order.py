import subprocess
import sys
from collections import Counter
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from odm import sample_order

SIZES = [1, 2, 3, 4, 5, 7, 8, 100, 1023, 1024, 1025, 1026, 1057, 4096, 4097, 10_007]


def order_of(size, *, seed=1, domain="wiki", epoch=0):
    return sample_order(seed, domain, epoch, size)(np.arange(size))


@pytest.mark.parametrize("size", SIZES)
def test_every_sample_is_read_once_an_epoch(size):
    assert sorted(order_of(size).tolist()) == list(range(size))


def test_no_seed_gives_a_sample_beyond_the_last():
    """Of 1056 numbers the order leaves 31 out; about 6 of these seeds meet the first of them."""
    for seed in range(200):
        assert np.sort(order_of(1025, seed=seed)).tolist() == list(range(1025)), seed


@settings(max_examples=30)
@given(
    size=st.integers(1025, 20_000),
    seed=st.integers(0, 2**63),
    domain=st.text(max_size=20),
    epoch=st.integers(0, 10**6),
)
def test_large_domains_are_permuted_without_repetition(size, seed, domain, epoch):
    order = order_of(size, seed=seed, domain=domain, epoch=epoch)
    assert np.bincount(order, minlength=size).tolist() == [1] * size


@pytest.mark.parametrize("size", [1000, 1025, 50_000, 10**9, 2**40 + 3, 2**62])
def test_one_position_many_and_few_give_the_same_samples(size):
    order = sample_order(9, "code", 4, size)
    positions = np.random.default_rng(0).integers(0, size, size=64)
    together = order(positions)
    assert together.dtype == np.int64
    assert together.min() >= 0
    assert together.max() < size
    np.testing.assert_array_equal(together, [order[int(p)] for p in positions])
    np.testing.assert_array_equal(together[:5], order(positions[:5]))
    np.testing.assert_array_equal(together.reshape(8, 8), order(positions.reshape(8, 8)))


def test_the_order_of_a_known_key_never_changes():
    # A change here changes the data of every run that is resumed.
    assert order_of(8).tolist() == [1, 0, 7, 2, 6, 4, 5, 3]
    assert order_of(5000)[:6].tolist() == [2263, 4561, 842, 3393, 2222, 1753]


def test_the_order_is_the_same_in_another_process_with_another_hash_seed():
    code = (
        "from odm import sample_order; print(sample_order(1, 'wiki', 3, 5000)(range(10)).tolist())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).resolve().parents[3],
        env={"PYTHONHASHSEED": "123"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == str(order_of(5000, epoch=3)[:10].tolist())


@pytest.mark.parametrize("size", [500, 5000])
@pytest.mark.parametrize(
    "other", [{"epoch": 1}, {"seed": 2}, {"domain": "wikj"}, {"epoch": 10, "seed": 10}]
)
def test_other_epochs_seeds_and_names_give_unrelated_orders(size, other):
    first, second = order_of(size), order_of(size, **other)
    assert (first == second).sum() < 8  # one is expected
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(size)


def test_seed_epoch_and_name_cannot_stand_in_for_each_other():
    assert order_of(500, seed=1, epoch=11).tolist() != order_of(500, seed=11, epoch=1).tolist()
    assert (
        order_of(500, epoch=1, domain="2").tolist() != order_of(500, epoch=12, domain="").tolist()
    )


@pytest.mark.parametrize("size", [3, 4])
def test_all_permutations_of_a_tiny_domain_are_equally_likely(size):
    num_epochs = 4800
    counts = Counter(tuple(order_of(size, epoch=epoch).tolist()) for epoch in range(num_epochs))
    all_orders = list(permutations(range(size)))
    expected = num_epochs / len(all_orders)
    chi_square = sum((counts[order] - expected) ** 2 / expected for order in all_orders)
    assert chi_square < {3: 20.5, 4: 49.7}[size]  # p = 0.001 with 5 and 23 degrees of freedom


@pytest.mark.parametrize("size", [1024, 1025, 1300])
def test_epochs_look_like_uniform_permutations(size):
    num_epochs = 400
    table = np.stack([order_of(size, epoch=epoch) for epoch in range(num_epochs)])

    def z_score(values, num_cells):
        expected = values.size / num_cells
        counts = np.bincount(values.ravel(), minlength=num_cells)
        chi_square = ((counts - expected) ** 2 / expected).sum()
        return (chi_square - num_cells) / np.sqrt(2 * num_cells)

    digit = -(-size // int(np.ceil(np.sqrt(size))))  # lag at which the right digit repeats
    for lag in (1, digit - 1, digit, digit + 1):
        assert abs(z_score((table[:, lag:] - table[:, :-lag]) % size - 1, size - 1)) < 4
    for position in (0, 1, size // 2, size - 1):
        assert abs(z_score(table[:, position] * 16 // size, 16)) < 4
    descents = (table[:, 1:] < table[:, :-1]).sum(1)
    assert abs(descents.mean() - (size - 1) / 2) < 4 * np.sqrt((size + 1) / 12 / num_epochs)
    assert 0.75 < descents.var() / ((size + 1) / 12) < 1.25
    fixed = (table == np.arange(size)).sum(1)
    assert abs(fixed.mean() - 1) < 4 / np.sqrt(num_epochs)


def test_empty_and_iterated_orders():
    order = sample_order(1, "wiki", 0, 7)
    assert order([]).tolist() == []
    assert len(order) == 7
    assert list(order) == order_of(7).tolist()


@pytest.mark.parametrize("size", [10, 5000])
@pytest.mark.parametrize("position", [-1, 5000, 10**12])
def test_positions_outside_an_epoch_are_refused(size, position):
    order = sample_order(1, "wiki", 0, size)
    message = rf"position {position} is not in \[0, {size}\)"
    with pytest.raises(ValueError, match=message):
        order([position])
    with pytest.raises(ValueError, match=message):
        order([0] * 20 + [position])


def test_unusable_arguments_are_refused():
    with pytest.raises(ValueError, match=r"size of 'wiki' must be .* from 1 to .*, got 0"):
        sample_order(1, "wiki", 0, 0)
    with pytest.raises(ValueError, match=r"epoch of 'wiki' must be .* at least 0, got -1"):
        sample_order(1, "wiki", -1, 5)
    with pytest.raises(ValueError, match="positions must be integers"):
        sample_order(1, "wiki", 0, 5)([0.5])
