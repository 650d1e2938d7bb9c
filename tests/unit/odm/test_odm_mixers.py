import copy
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from odm import Signal, known_mixers, make_mixer, register
from odm.mixers import Exp3, NaiveValidation, OdmPaper, SmoothedMean
from odm.mixers.exploring import ExploringMixer
from odm.simplex import exploration_rate
from tests.mixers import mixer_for

METHODS = known_mixers()
WITH_FLOOR = [name for name in METHODS if isinstance(mixer_for(name, 2), ExploringMixer)]


def run(mixer, losses_by_step, *, weights=None, first_step=1):
    num_domains = len(losses_by_step[0])
    weights = np.full(num_domains, 1.0) if weights is None else weights
    state = mixer.init([f"d{i}" for i in range(num_domains)], weights)
    used = np.array(weights) / np.sum(weights)
    for step, losses in enumerate(losses_by_step, start=first_step):
        state, used = mixer.update(state, step, losses, used)
    return state, used


loss = st.floats(0.0, 1e3, allow_nan=False)


@st.composite
def traces(draw):
    num_domains = draw(st.integers(2, 6))
    steps = draw(st.integers(1, 6))
    return draw(
        st.lists(
            st.lists(loss, min_size=num_domains, max_size=num_domains),
            min_size=steps,
            max_size=steps,
        )
    )


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=60)
@given(trace=traces(), first_step=st.integers(1, 10**7))
def test_weights_are_a_probability_vector(method, trace, first_step):
    _, weights = run(
        mixer_for(method, len(trace[0])), np.array(trace) + 1e-3, first_step=first_step
    )
    assert np.isfinite(weights).all()
    assert (weights >= 0).all()
    assert abs(weights.sum() - 1) < 1e-12


@pytest.mark.parametrize("method", WITH_FLOOR)
@settings(max_examples=60)
@given(trace=traces(), first_step=st.integers(1, 10**7))
def test_no_weight_falls_below_the_exploration_rate(method, trace, first_step):
    state, weights = run(make_mixer(method), trace, first_step=first_step)
    assert weights.min() >= state["eps"] * (1 - 1e-12)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=40)
@given(trace=traces(), seed=st.integers(0, 1000))
def test_renaming_the_domains_permutes_the_weights(method, trace, seed):
    trace = np.array(trace) + 1e-3
    order = np.random.default_rng(seed).permutation(trace.shape[1])
    start = np.arange(1.0, trace.shape[1] + 1)
    mixer = mixer_for(method, trace.shape[1])
    _, plain = run(mixer, trace, weights=start, first_step=500)
    _, permuted = run(mixer, trace[:, order], weights=start[order], first_step=500)
    np.testing.assert_allclose(permuted, plain[order], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_update_changes_neither_state_nor_arguments(method):
    mixer = mixer_for(method, 3)
    start = [1.0, 2.0, 1.0]
    state = mixer.init(["a", "b", "c"], start)
    losses, used = np.array([1.0, 2.0, 3.0]), np.array([0.25, 0.5, 0.25])
    kept = copy.deepcopy(state)
    mixer.update(state, 1000, losses, used)
    assert state == kept
    assert start == [1.0, 2.0, 1.0]
    assert losses.tolist() == [1.0, 2.0, 3.0]
    assert used.tolist() == [0.25, 0.5, 0.25]


@pytest.mark.parametrize("method", METHODS)
def test_a_state_survives_json_exactly_at_every_step(method):
    rng = np.random.default_rng(5)
    mixer = mixer_for(method, 3)
    state = mixer.init(["a", "b", "c"], [0.5, 0.3, 0.2])
    used = np.array([0.5, 0.3, 0.2])
    for step in range(1, 40):
        losses = rng.uniform(1, 5, size=3)
        expected, weights = mixer.update(state, step, losses, used)
        restored = json.loads(json.dumps(state, allow_nan=False))
        again, weights_again = mixer.update(restored, step, losses, used)
        assert again == expected
        assert weights_again.tobytes() == weights.tobytes()
        state, used = expected, weights


def test_smoothed_mean_equals_a_step_done_by_hand():
    # K = 2, t = 10: eps = sqrt(ln 2 / 20) = 0.1861649; R = (e^1, e^2) / 10; share = 1 / (1 + e).
    _, weights = run(SmoothedMean(0.9), [[1.0, 2.0]], first_step=10)
    eps = math.sqrt(math.log(2) / 20)
    share = 1 / (1 + math.e)
    np.testing.assert_allclose(
        weights, [eps + (1 - 2 * eps) * share, eps + (1 - 2 * eps) * (1 - share)], rtol=1e-14
    )
    np.testing.assert_allclose(weights, [0.3549714, 0.6450286], atol=1e-7)


def test_smoothed_mean_keeps_the_average_of_an_absent_domain():
    mixer = SmoothedMean(0.5)
    state, used = run(mixer, [[1.0, 2.0]], first_step=10)
    following, weights = mixer.update(state, 11, [np.nan, 3.0], used)
    expected = [0.5 * math.e, 0.5 * (0.5 * math.e**2) + 0.5 * math.e**3]
    np.testing.assert_allclose(following["estimated_reward"], expected, rtol=1e-14)
    assert weights[1] > used[1]


def test_a_domain_never_seen_gets_exactly_the_exploration_rate():
    _, weights = run(SmoothedMean(), [[2.0, np.nan, 3.0]], first_step=2001)
    assert weights[1] == pytest.approx(exploration_rate(2001, 3), rel=1e-14)


def test_smoothed_mean_is_uniform_until_step_k_ln_k():
    # K ln K = 8.05 for K = 5: the first update erases the configured weights.
    _, weights = run(SmoothedMean(), [[1.0, 2.0, 3.0, 4.0, 5.0]], first_step=8)
    np.testing.assert_allclose(weights, np.full(5, 0.2), rtol=1e-15)


def test_odm_paper_equals_a_step_done_by_hand():
    # Policy of step 101: eps_101 and inverse temperature eps_100; R_i = 0.1 * L_i / p_i.
    _, weights = run(OdmPaper(0.9), [[1.0, 3.0]], weights=[0.25, 0.75], first_step=100)
    eps_100, eps_101 = math.sqrt(math.log(2) / 200), math.sqrt(math.log(2) / 202)
    # L / p is 4 for both domains.
    np.testing.assert_allclose(weights, [0.5, 0.5], rtol=1e-14)
    _, weights = run(OdmPaper(0.9), [[1.0, 3.0]], weights=[0.5, 0.5], first_step=100)
    high = 1 / (1 + math.exp(-eps_100 * (0.6 - 0.2)))
    expected = eps_101 + (1 - 2 * eps_101) * high
    np.testing.assert_allclose(weights, [1 - expected, expected], rtol=1e-14)


def test_odm_paper_decays_to_uniform():
    rng = np.random.default_rng(0)
    losses = np.linspace(1.5, 3.0, 22)

    def distance_after(step):
        mixer = OdmPaper()
        state, used = mixer.init([f"d{i}" for i in range(22)], np.ones(22)), np.full(22, 1 / 22)
        for t in range(step, step + 200):
            seen = np.unique(rng.choice(22, size=8, p=used))
            observed = np.full(22, np.nan)
            observed[seen] = losses[seen]
            state, used = mixer.update(state, t, observed, used)
        return 0.5 * np.abs(used - 1 / 22).sum()

    early, late = distance_after(2_000), distance_after(1_000_000)
    assert late < early
    assert late < 0.01


def test_exp3_equals_a_step_done_by_hand():
    # C = L / 10 / p; the first update uses the inverse temperature 1 / K.
    state, weights = run(Exp3(), [[2.0, 4.0]], weights=[0.2, 0.8], first_step=100)
    np.testing.assert_allclose(state["cumulative_estimated_reward"], [1.0, 0.5], rtol=1e-14)
    eps = math.sqrt(math.log(2) / 200)
    high = 1 / (1 + math.exp(-0.5 * 0.5))
    np.testing.assert_allclose(weights[0], eps + (1 - 2 * eps) * high, rtol=1e-14)


def test_ema_equals_a_step_done_by_hand():
    # c = 2 / (1 + 3) = 0.5 on the raw weights (2, 6).
    state, weights = run(make_mixer("ema"), [[4.0, np.nan]], weights=[2.0, 6.0], first_step=3)
    assert state["weights"] == [3.0, 6.0]
    np.testing.assert_allclose(weights, [1 / 3, 2 / 3], rtol=1e-15)


def test_naive_validation_adds_normalised_losses():
    state, _ = run(NaiveValidation(), [[1.0, 2.0, 5.0], [3.0, 3.0, 3.0]], first_step=100)
    assert state["cumulative_estimated_reward"] == [0.0, 0.25, 1.0]


def test_static_returns_the_initial_weights_whatever_the_losses():
    _, weights = run(make_mixer("static"), [[9.0, 1.0]] * 3, weights=[3.0, 1.0])
    assert weights.tolist() == [0.75, 0.25]


@pytest.mark.parametrize("method", METHODS)
def test_a_signal_and_its_mean_losses_give_the_same_update(method):
    mixer = mixer_for(method, 2)
    state, used = mixer.init(["a", "b"], [1.0, 2.0]), [1 / 3, 2 / 3]
    signal = Signal.from_means([2.0, 3.0], [4, 8])  # as many tokens as the weights lead to expect
    assert mixer.update(state, 50, signal, used)[0] == mixer.update(state, 50, [2.0, 3.0], used)[0]


@pytest.mark.parametrize("method", METHODS)
def test_nothing_observed_changes_nothing(method):
    mixer = mixer_for(method, 2)
    state = mixer.init(["a", "b"], [1.0, 3.0])
    following, weights = mixer.update(state, 50, [np.nan, np.nan], [0.25, 0.75])
    assert following == state
    assert weights.tolist() == [0.25, 0.75]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_million_updates_stay_finite(method):
    _million(method, range(1, 1_000_001))


@pytest.mark.parametrize("method", METHODS)
def test_a_thousand_updates_around_step_a_million_stay_finite(method):
    _million(method, range(1, 1_000_000_001, 1_000_000), scale=1_000.0)


def _million(method, steps, *, scale=1.0):
    mixer = mixer_for(method, 3)
    state, used = mixer.init(["a", "b", "c"], np.ones(3)), np.full(3, 1 / 3)
    losses = scale * np.array([2.0, 2.5, 3.0])
    for step in steps:
        state, used = mixer.update(state, step, losses, used)
    assert np.isfinite(used).all()
    assert used.sum() == pytest.approx(1, abs=1e-12)
    json.dumps(state, allow_nan=False)


@pytest.mark.parametrize("huge", [709.0, 710.0, 1e6, 1e300])
def test_smoothed_mean_survives_losses_whose_exponential_overflows(huge):
    state, weights = run(SmoothedMean(), [[2.0, huge]] * 5, first_step=100_000)
    assert weights[1] == pytest.approx(1 - exploration_rate(100_004, 2))
    json.dumps(state, allow_nan=False)


@pytest.mark.parametrize("bad", [np.inf, -np.inf])
@pytest.mark.parametrize("method", METHODS)
def test_nonfinite_losses_are_refused(method, bad):
    mixer = mixer_for(method, 2)
    state = mixer.init(["a", "b"], [1.0, 1.0])
    with pytest.raises(ValueError, match=r"loss of domain 1 at step 1 is -?inf, must be finite"):
        mixer.update(state, 1, [1.0, bad], [0.5, 0.5])
    nan = Signal(*np.array([[np.nan, 1.0], [0, 0], [5, 5], [1, 1]]))
    with pytest.raises(ValueError, match="loss of domain 0 at step 1 is nan"):
        mixer.update(state, 1, nan, [0.5, 0.5])


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("static", "schedule")])
def test_one_domain_is_refused_with_the_way_out(method):
    with pytest.raises(ValueError, match=r"needs at least 2 domains, got 1 .*use static"):
        mixer_for(method, 1).init(["only"], [1.0])


def test_static_accepts_one_domain():
    _, weights = run(make_mixer("static"), [[2.0]])
    assert weights.tolist() == [1.0]


@pytest.mark.parametrize("value", [1.0, 1.5, -0.1, math.nan])
@pytest.mark.parametrize("method", ["smoothed_mean", "odm_paper"])
def test_a_smoothing_factor_outside_the_unit_interval_is_refused(method, value):
    with pytest.raises(ValueError, match=rf"{method}: smoothing_factor must be in \[0, 1\)"):
        make_mixer(method, smoothing_factor=value)


def test_unknown_methods_and_options_name_the_nearest():
    with pytest.raises(
        ValueError, match=r"unknown method 'smooth_mean', known: .*did you mean 'smo"
    ):
        make_mixer("smooth_mean")
    with pytest.raises(
        ValueError, match=r"option of exp3 'reward_scal'.*did you mean 'reward_scale'"
    ):
        make_mixer("exp3", reward_scal=1.0)


def test_a_name_cannot_be_registered_twice():
    with pytest.raises(ValueError, match="'exp3' is already registered by Exp3"):
        register("exp3")(SmoothedMean)


@pytest.mark.parametrize(
    ("names", "weights", "message"),
    [
        ([], [], "the list is empty"),
        (["a", "a"], [1, 1], "'a' is named twice"),
        (["a", "b"], [1], "expected 2 weights"),
        (["a", "b"], [1, -1], "finite and not negative"),
        (["a", "b"], [0, 0], "all weights are 0"),
        ("ab", [1, 1], "must be a list of names, .*, got 'ab'"),
    ],
)
def test_unusable_domains_and_weights_are_refused(names, weights, message):
    with pytest.raises(ValueError, match=message):
        make_mixer("smoothed_mean").init(names, weights)


@pytest.mark.parametrize("method", ["exp3", "odm_paper"])
def test_a_loss_of_a_domain_with_weight_zero_is_refused(method):
    mixer = make_mixer(method)
    with pytest.raises(ValueError, match="domain 1 has a loss but its weight was 0"):
        mixer.update(mixer.init(["a", "b"], [1, 0]), 1, [1.0, 1.0], [1.0, 0.0])


def test_naive_validation_needs_every_domain():
    mixer = make_mixer("naive_validation")
    with pytest.raises(ValueError, match="domain 1 has no validation loss at step 4"):
        mixer.update(mixer.init(["a", "b"], [1, 1]), 4, [1.0, np.nan], [0.5, 0.5])


def test_ema_refuses_negative_losses():
    mixer = make_mixer("ema")
    with pytest.raises(ValueError, match="must not be negative"):
        mixer.update(mixer.init(["a", "b"], [1, 1]), 4, [1.0, -1.0], [0.5, 0.5])


def test_steps_are_counted_from_one():
    mixer = make_mixer("smoothed_mean")
    with pytest.raises(ValueError, match=r"step must be .* at least 1, got 0"):
        mixer.update(mixer.init(["a", "b"], [1, 1]), 0, [1.0, 1.0], [0.5, 0.5])
