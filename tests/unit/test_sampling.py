"""Properties of the choice of the next token."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron.sampling import filter_logits, next_tokens

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


@given(LOGITS, st.integers(0, 15), st.floats(0, 1))
def test_what_a_filter_keeps_keeps_its_value_and_the_input_is_not_changed(values, k, p):
    logits = torch.tensor([values])
    before = logits.clone()
    filtered = filter_logits(logits, top_k=k, top_p=p)
    assert torch.equal(logits, before)
    assert torch.equal(filtered[kept(filtered)], logits[kept(filtered)])


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_without_a_limit_nothing_is_filtered(p):
    logits = torch.randn(3, 7)
    assert torch.equal(filter_logits(logits, top_k=0, top_p=p), logits)


def test_rows_are_filtered_on_their_own():
    logits = torch.tensor([[3.0, 1.0, 2.0], [1.0, 2.0, 3.0]])
    mask = kept(filter_logits(logits, top_k=1))
    assert mask.tolist() == [[True, False, False], [False, False, True]]


def test_a_nucleus_smaller_than_the_likeliest_token_keeps_it():
    logits = torch.tensor([[0.9, 0.05, 0.05]]).log()
    assert kept(filter_logits(logits, top_p=0.5)).tolist() == [[True, False, False]]


def choose(logits: torch.Tensor, seed: int = 0, **options: float) -> list[int]:
    settings = {"temperature": 0.0, "top_k": 0, "top_p": 0.0, **options}
    generator = torch.Generator().manual_seed(seed)
    return next_tokens(logits, generator=generator, **settings).tolist()  # type: ignore[arg-type]


def test_all_zero_is_greedy():
    assert choose(torch.tensor([[0.0, 2.0, 1.0], [5.0, 2.0, 1.0]])) == [1, 0]


def test_top_k_1_is_greedy_at_any_temperature():
    logits = torch.randn(20, 50)
    assert choose(logits, temperature=5.0, top_k=1) == choose(logits)


def test_a_seed_repeats_the_choice():
    logits = torch.zeros(100, 50)
    assert choose(logits, 3, temperature=1.0) == choose(logits, 3, temperature=1.0)
    assert choose(logits, 3, temperature=1.0) != choose(logits, 4, temperature=1.0)


def test_samples_follow_the_probabilities_at_their_temperature():
    logits = torch.tensor([0.5, 0.3, 0.2]).log().repeat(20_000, 1)
    # at temperature 1/2 the probabilities are squared: 25, 9 and 4 of 38
    counts = torch.tensor(choose(logits, temperature=0.5)).bincount(minlength=3) / 20_000
    # three standard deviations of the largest
    assert counts.tolist() == pytest.approx([25 / 38, 9 / 38, 4 / 38], abs=0.01)


def test_half_precision_logits_can_be_sampled():
    assert choose(torch.tensor([[0.0, 30.0]], dtype=torch.bfloat16), temperature=1.0) == [1]
