"""Properties of the choice of the next token."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron.generation.sampling import (
    SamplingParameters,
    filter_logits,
    next_tokens,
    penalize_repetition,
    sample_generator,
)

# a grid of values, so that ties come up
LOGITS = st.lists(st.integers(-8, 8).map(lambda n: n / 4), min_size=1, max_size=12)


def kept(logits: torch.Tensor) -> torch.Tensor:
    return logits > float("-inf")


@given(LOGITS, st.integers(1, 15))
def test_top_k_keeps_exactly_k_and_none_smaller_than_one_left_out(values, k):
    logits = torch.tensor([values])
    mask = kept(filter_logits(logits, top_k=k))
    assert mask.sum() == min(k, len(values))
    if not mask.all():
        assert logits[mask].min() >= logits[~mask].max()


@given(LOGITS, st.floats(0.01, 0.99))
def test_top_p_keeps_the_fewest_tokens_that_reach_the_mass(values, p):
    logits = torch.tensor([values], dtype=torch.float64)
    probabilities = logits.softmax(-1)
    mask = kept(filter_logits(logits, top_p=p))
    mass, smallest = probabilities[mask].sum(), probabilities[mask].min()
    assert mask.any()
    assert mass >= p - 1e-9
    assert mass - smallest < p + 1e-9
    if not mask.all():
        assert smallest >= probabilities[~mask].max() - 1e-12


@given(LOGITS, st.floats(0.01, 1.0))
def test_min_p_keeps_exactly_the_tokens_above_a_share_of_the_largest(values, share):
    logits = torch.tensor([values], dtype=torch.float64)
    ratio = logits.softmax(-1) / logits.softmax(-1).max()
    mask = kept(filter_logits(logits, min_p=share))
    assert mask[ratio > share + 1e-9].all()
    assert not mask[ratio < share - 1e-9].any()


@given(LOGITS, st.integers(0, 15), st.floats(0, 1), st.floats(0, 1))
def test_what_a_filter_keeps_keeps_its_value_and_the_input_is_not_changed(values, k, p, share):
    logits = torch.tensor([values])
    before = logits.clone()
    filtered = filter_logits(logits, top_k=k, top_p=p, min_p=share)
    assert torch.equal(logits, before)
    assert kept(filtered).any()
    assert torch.equal(filtered[kept(filtered)], logits[kept(filtered)])
    assert filtered.max() == logits.max()


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_without_a_limit_nothing_is_filtered(p):
    logits = torch.randn(3, 7)
    assert torch.equal(filter_logits(logits, top_k=0, top_p=p), logits)


def test_the_nucleus_is_cut_from_what_top_k_kept():
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    # 4/7 of what is left is the first one's: it alone reaches 0.5, which it does not without top_k
    assert kept(filter_logits(logits, top_k=2, top_p=0.5)).tolist() == [[True, False, False, False]]
    assert kept(filter_logits(logits, top_p=0.5)).tolist() == [[True, True, False, False]]


def test_rows_are_filtered_on_their_own():
    logits = torch.tensor([[3.0, 1.0, 2.0], [1.0, 2.0, 3.0]])
    mask = kept(filter_logits(logits, top_k=1))
    assert mask.tolist() == [[True, False, False], [False, False, True]]


def test_a_nucleus_smaller_than_the_likeliest_token_keeps_it():
    logits = torch.tensor([[0.9, 0.05, 0.05]]).log()
    assert kept(filter_logits(logits, top_p=0.5)).tolist() == [[True, False, False]]


def test_the_penalty_makes_seen_tokens_less_likely_whatever_their_sign():
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    seen = torch.tensor([[True, True, False, False]])
    assert penalize_repetition(logits, seen, 4.0).tolist() == [[0.5, -8.0, 2.0, -2.0]]
    assert penalize_repetition(logits, seen, 0.5).tolist() == [[4.0, -1.0, 2.0, -2.0]]
    assert torch.equal(penalize_repetition(logits, seen, 1.0), logits)


# choosing


def choose(logits: torch.Tensor, seed: int = 0, seen: Any = None, **options: Any) -> list[int]:
    generators = [sample_generator(seed, row) for row in range(len(logits))]
    parameters = SamplingParameters(**options)
    return next_tokens(logits, parameters, generators=generators, seen=seen).tolist()


@given(LOGITS, st.integers(0, 5), st.floats(0, 1), st.floats(0, 1))
def test_temperature_0_is_argmax_whatever_the_filters_say(values, k, p, share):
    logits = torch.tensor([values])
    parameters = SamplingParameters(top_k=k, top_p=p, min_p=share)
    assert parameters.is_greedy
    assert next_tokens(logits, parameters).tolist() == [logits[0].argmax()]


def test_top_k_1_is_greedy_at_any_temperature():
    logits = torch.randn(20, 50)
    assert choose(logits, temperature=5.0, top_k=1) == choose(logits)


def test_the_penalty_counts_for_the_greedy_choice():
    seen = torch.tensor([[True, False, False]])
    logits = torch.tensor([[3.0, 2.0, 1.0]])
    assert choose(logits, seen=seen, repetition_penalty=2.0) == [1]
    assert choose(logits, seen=seen, repetition_penalty=1.0) == [0]


def test_a_seed_repeats_the_choice():
    logits = torch.zeros(100, 50)
    assert choose(logits, 3, temperature=1.0) == choose(logits, 3, temperature=1.0)
    assert choose(logits, 3, temperature=1.0) != choose(logits, 4, temperature=1.0)


def test_samples_of_one_seed_differ_and_neighbouring_seeds_share_none():
    first = {sample_generator(seed, n).initial_seed() for seed in range(20) for n in range(20)}
    assert len(first) == 400


def test_a_row_is_chosen_by_its_own_generator_alone():
    logits = torch.randn(6, 50)
    together = choose(logits, temperature=1.0)
    alone = [
        next_tokens(
            logits[row : row + 1],
            SamplingParameters(temperature=1.0),
            generators=[sample_generator(0, row)],
        ).item()
        for row in range(6)
    ]
    assert together == alone


def test_the_last_bits_of_the_logits_do_not_change_the_choice():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2000, 50, generator=generator)
    other = logits + 1e-6 * torch.randn(2000, 50, generator=generator)
    assert choose(logits, temperature=1.0) == choose(other, temperature=1.0)


def test_samples_follow_the_probabilities_at_their_temperature():
    logits = torch.tensor([0.5, 0.3, 0.2]).log().repeat(20_000, 1)
    # at temperature 1/2 the probabilities are squared: 25, 9 and 4 of 38
    counts = torch.tensor(choose(logits, temperature=0.5)).bincount(minlength=3) / 20_000
    # three standard deviations of the largest
    assert counts.tolist() == pytest.approx([25 / 38, 9 / 38, 4 / 38], abs=0.01)


def test_one_generator_gives_independent_choices_step_after_step():
    generator, logits = sample_generator(0, 0), torch.zeros(1, 4)
    parameters = SamplingParameters(temperature=1.0)
    tokens = [int(next_tokens(logits, parameters, generators=[generator])) for _ in range(4000)]
    pairs = torch.tensor([4 * a + b for a, b in itertools.pairwise(tokens)])
    # each of 16 pairs has 250 of 4000; four standard deviations are 62
    assert (pairs.bincount(minlength=16) - 250).abs().max() < 62


def test_half_precision_logits_can_be_sampled():
    assert choose(torch.tensor([[0.0, 30.0]], dtype=torch.bfloat16), temperature=1.0) == [1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "filters", [{}, {"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.1}, {"temperature": 0.0}]
)
def test_logits_that_are_not_finite_choose_no_token(value, filters):
    logits = torch.tensor([[0.0, value, 1.0, 2.0], [0.0, float("-inf"), 9e9, 1.0]])
    chosen = next_tokens(
        logits,
        SamplingParameters(**{"temperature": 1.0, **filters}),
        generators=[sample_generator(0, number) for number in range(2)],
    )
    assert chosen.tolist() == [-1, 2]
