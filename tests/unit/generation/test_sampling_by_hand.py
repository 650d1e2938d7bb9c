"""Which tokens the filters leave, in likelihoods worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from megatron.generation.sampling import (
    SamplingParameters,
    filter_logits,
    next_tokens,
    penalize_repetition,
    sample_generator,
)

# likelihoods of four tokens
SHARES = [0.1, 0.5, 0.15, 0.25]


def kept(**filters: float) -> list[int]:
    logits = torch.tensor([SHARES]).log()
    return torch.where(filter_logits(logits, **filters)[0] > -math.inf)[0].tolist()


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, [0, 1, 2, 3]),
        ({"top_k": 1}, [1]),
        ({"top_k": 3}, [1, 2, 3]),
        ({"top_k": 9}, [0, 1, 2, 3]),
        ({"top_p": 0.49}, [1]),
        ({"top_p": 0.51}, [1, 3]),
        ({"top_p": 0.74}, [1, 3]),
        ({"top_p": 0.76}, [1, 2, 3]),
        ({"top_p": 1.0}, [0, 1, 2, 3]),
        ({"top_p": 1e-9}, [1]),
        # of the largest, 0.5: 0.25 and more, then 0.125 and more
        ({"min_p": 0.49}, [1, 3]),
        ({"min_p": 0.25}, [1, 2, 3]),
        ({"min_p": 0.99}, [1]),
        # of the two that are left 0.5 has two thirds
        ({"top_k": 2, "top_p": 0.6}, [1]),
        ({"top_k": 2, "top_p": 0.7}, [1, 3]),
    ],
)
def test_tokens_that_a_filter_leaves(filters, expected):
    assert kept(**filters) == expected


@pytest.mark.parametrize(
    ("penalty", "expected"),
    [
        (2.0, [1.0, 3.0, -4.0, -1.0]),
        (0.5, [4.0, 3.0, -1.0, -1.0]),
        (1.0, [2.0, 3.0, -2.0, -1.0]),
    ],
)
def test_a_penalty_makes_seen_tokens_less_likely_above_1_and_likelier_below(penalty, expected):
    logits, seen = torch.tensor([[2.0, 3.0, -2.0, -1.0]]), torch.tensor([[1, 0, 1, 0]]).bool()
    assert penalize_repetition(logits, seen, penalty)[0].tolist() == expected
    chosen = next_tokens(logits, SamplingParameters(repetition_penalty=penalty), seen=seen)
    assert chosen.tolist() == [int(torch.tensor(expected).argmax())]


@pytest.mark.parametrize(
    ("temperature", "shares"),
    [(1.0, SHARES), (0.5, [0.01 / 0.345, 0.25 / 0.345, 0.0225 / 0.345, 0.0625 / 0.345])],
)
def test_tokens_come_as_often_as_they_are_likely(temperature, shares):
    """Half the temperature squares the likelihoods: their squares sum to 0.345."""
    logits = torch.tensor([SHARES]).log().expand(2000, 4)
    generators = [sample_generator(1, number) for number in range(2000)]
    parameters = SamplingParameters(temperature=temperature)
    drawn = next_tokens(logits, parameters, generators=generators)
    counts = torch.bincount(drawn, minlength=4) / 2000
    assert counts.tolist() == pytest.approx(shares, abs=0.03)


def test_samples_have_random_numbers_of_their_own():
    first = [torch.rand(2, generator=sample_generator(1, n)).tolist() for n in (0, 1, 0)]
    assert first[0] == first[2] != first[1]
    assert torch.rand(2, generator=sample_generator(2, 0)).tolist() != first[0]


def test_tokens_that_reach_the_mass_exactly_are_enough():
    kept = filter_logits(torch.zeros(1, 4), top_p=0.5).isfinite().sum()
    assert kept == 2  # of four with a quarter each


def test_seeds_that_share_their_lower_bits_are_others():
    firsts = {torch.rand((), generator=sample_generator(seed, 0)).item() for seed in (1, 1 + 2**32)}
    assert len(firsts) == 2


def test_the_temperature_does_not_round_logits_in_half_precision():
    logits = torch.tensor([[100.0, 101.0]], dtype=torch.bfloat16)  # a third becomes 33.25 and 33.75
    parameters = SamplingParameters(temperature=3.0, min_p=0.7)  # exp(-1 / 3) is 0.717
    generators = [sample_generator(0, number) for number in range(40)]
    tokens = next_tokens(logits.expand(40, 2), parameters, generators=generators)
    assert set(tokens.tolist()) == {0, 1}
