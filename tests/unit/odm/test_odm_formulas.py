"""The mixers against an independent implementation of the printed formulas, and at their limits."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from odm import known_mixers, make_mixer
from tests.mixers import mixer_for

METHODS = known_mixers()


def naive_update(method, state, step, losses, used):
    """One update by the formulas as they are printed, with dictionaries and plain floats."""
    num_domains = len(used)

    def rate(t):
        return min(1 / num_domains, math.sqrt(math.log(num_domains) / (num_domains * t)))

    def gibbs(values, temperature, eps):
        powers = [math.exp(temperature * (v - max(values))) for v in values]
        return [eps + (1 - num_domains * eps) * p / math.fsum(powers) for p in powers]

    values = dict(state["values"])
    for domain, loss in losses.items():
        if method == "smoothed_mean":
            values[domain] = 0.9 * values[domain] + 0.1 * math.exp(loss)
        elif method == "odm_paper":
            values[domain] = 0.9 * values[domain] + 0.1 * loss / used[domain]
        elif method == "exp3":
            values[domain] += loss / 10 / used[domain]
        else:
            values[domain] = 2 / (1 + step) * loss + (1 - 2 / (1 + step)) * values[domain]
    eps, row = rate(step), [values[domain] for domain in range(num_domains)]
    if method == "exp3":
        weights = gibbs(row, state["eps"], eps)
    elif method == "odm_paper":
        weights = gibbs(row, eps, rate(step + 1))
    else:
        share = [value / math.fsum(row) for value in row]
        floor = 0.0 if method == "ema" else eps
        weights = [floor + (1 - num_domains * floor) * s for s in share]
    return {"values": values, "eps": eps}, weights


@pytest.mark.parametrize("method", ["smoothed_mean", "odm_paper", "exp3", "ema"])
@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), first_step=st.integers(1, 10**6))
def test_updates_equal_the_printed_formulas_whatever_domains_are_absent(method, seed, first_step):
    rng = np.random.default_rng(seed)
    num_domains = int(rng.choice([2, 3, 7, 40]))
    start = rng.random(num_domains) + 0.01
    mixer = make_mixer(method)
    state = mixer.init([f"d{i}" for i in range(num_domains)], start)
    used = start / start.sum()
    values = start.tolist() if method == "ema" else [0.0] * num_domains
    naive = {"values": dict(enumerate(values)), "eps": 1 / num_domains}
    expected = used.tolist()
    step = first_step
    for _ in range(8):
        losses = rng.uniform(0.01, rng.choice([4.0, 60.0]), size=num_domains)
        losses[rng.random(num_domains) < rng.choice([0.0, 0.5, 0.9])] = np.nan
        losses[rng.integers(num_domains)] = 1e-30
        seen = {k: x for k, x in enumerate(losses.tolist()) if not math.isnan(x)}
        state, used = mixer.update(state, step, losses, used)
        naive, expected = naive_update(method, naive, step, seen, expected)
        np.testing.assert_allclose(used, expected, rtol=1e-9, atol=1e-15)
        step += int(rng.integers(1, 5))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num_domains", [2, 1000])
def test_losses_of_any_size_give_a_probability_vector(method, num_domains):
    mixer = mixer_for(method, num_domains)
    names = [f"d{i}" for i in range(num_domains)]
    state, used = mixer.init(names, np.ones(num_domains)), np.full(num_domains, 1 / num_domains)
    for step in range(10_000, 10_020):
        losses = np.full(num_domains, 1e-300)
        losses[0], losses[1] = [(0.0, 1e30), (1e300, 1e-30), (1e300, 1e300)][step % 3]
        state, used = mixer.update(state, step, losses, used)
        assert used.min() >= 0
        assert used.sum() == pytest.approx(1, abs=1e-12)
    json.dumps(state, allow_nan=False)


@pytest.mark.parametrize("method", ["exp3", "odm_paper"])
def test_a_reward_that_overflows_counts_as_the_largest(method):
    mixer = make_mixer(method)
    state, weights = mixer.update(
        mixer.init(["a", "b"], [1, 1]), 10_000, [1e300, 1.0], [1e-300, 1.0]
    )
    assert weights[0] == pytest.approx(1, abs=0.01)
    json.dumps(state, allow_nan=False)


def test_weights_whose_sum_overflows_are_refused():
    with pytest.raises(ValueError, match="static: weights: the sum is too large for a float"):
        make_mixer("static").init(["a", "b"], [1e308, 1e308])
