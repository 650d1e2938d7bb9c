import numpy as np
import pytest
import torch

from megatron.model import random_numbers
from megatron.model.random_numbers import NumberStream
from megatron.model.shard_blocks import Rectangle

COUNT = 1 << 20
LITERAL = [1.0155963897705078, -2.228565216064453, 0.6308863759040833, 0.5913258194923401]


def line(start: int, count: int) -> Rectangle:
    return Rectangle(0, 1, start, count, 1 << 40)


def normal(seed: int, name: str, start: int = 0, count: int = COUNT) -> np.ndarray:
    return NumberStream(seed, name).normal(line(start, count))[0]


def standard_error(values: np.ndarray) -> float:
    return float(abs(values.mean()) * np.sqrt(values.size) / values.std())


def test_normal_numbers_have_the_moments_of_the_normal_distribution():
    drawn = normal(1, "a").astype(np.float64)
    for power, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0), (6, 15.0)):
        assert standard_error(drawn**power - moment) < 4
    assert 4.5 < abs(drawn).max() < 6.8


def test_uniform_numbers_fill_their_range_evenly():
    drawn = NumberStream(1, "a").uniform(line(0, COUNT))[0]
    counts, _ = np.histogram(drawn, bins=64, range=(0, 1))
    chi_squared = ((counts - COUNT / 64) ** 2).sum() / (COUNT / 64)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert 25 < chi_squared < 115  # 63 degrees of freedom


@pytest.mark.parametrize("lag", [1, 2, 3, 64, 4096])
def test_neighbours_do_not_depend_on_each_other(lag):
    drawn = normal(1, "a").astype(np.float64)
    assert standard_error(drawn[lag:] * drawn[:-lag]) < 4
    assert standard_error((drawn[lag:] ** 2 - 1) * (drawn[:-lag] ** 2 - 1)) < 4


@pytest.mark.parametrize("other", [(1, "b"), (2, "a"), (1, "a2")])
def test_other_names_and_seeds_give_other_numbers(other):
    assert standard_error(normal(1, "a").astype(np.float64) * normal(*other)) < 4


@pytest.mark.parametrize("start", [0, 5, (1 << 32) - 7, (1 << 33) - 7, (1 << 34) + 3])
def test_any_part_of_a_sequence_is_drawn_alone(start):
    whole = normal(7, "w", start, 40)
    for first, count in ((0, 1), (1, 1), (3, 20), (6, 2), (7, 9)):
        assert np.array_equal(normal(7, "w", start + first, count), whole[first : first + count])


@pytest.mark.parametrize("row_length", [1000, 1001])
def test_columns_are_those_of_the_whole_matrix(row_length):
    numbers = NumberStream(1, "w")
    whole = numbers.normal(Rectangle(0, 200, 0, row_length, row_length))
    part = numbers.normal(Rectangle(11, 150, 333, 401, row_length))
    assert np.array_equal(part, whole[11:161, 333:734])


def test_the_number_of_threads_changes_nothing(monkeypatch):
    alone = normal(1, "a", 3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(random_numbers, "_PARALLEL_FROM", 1)
    assert np.array_equal(normal(1, "a", 3), alone)


def test_these_numbers_never_change():
    found = normal(1234, "2.attention.query_key_value.weight", 0, 4)
    assert found == pytest.approx(LITERAL, rel=1e-5)
