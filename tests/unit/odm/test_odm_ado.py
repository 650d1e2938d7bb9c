import json

import numpy as np
import pytest

from odm import MixtureController, MixtureSchedule, Signal, make_mixer

NAMES = ["a", "b", "c"]


def after(mixer, losses_of, num_steps, *, weights=(1.0, 1.0, 1.0)):
    """State and weights after updates at the steps 1, 2, ..."""
    state = mixer.init(NAMES[: len(weights)], weights)
    used = np.array(weights) / np.sum(weights)
    for step in range(1, num_steps + 1):
        state, used = mixer.update(state, step, losses_of(step), used)
    return state, used


def laws(step):
    return [2.0 + 3.0 * step**-0.5, 0.5 + 2.0 * step**-0.1, 9.0]


def fitted(**changes):
    """A state with the laws ``1 (n / 100)^-0.5`` and ``2 (n / 100)^-0.25`` above their floors.

    Their speeds at n = 100 are 0.5 * 1 and 0.25 * 2 nats per e-fold; the prior is 0.5 for both.
    """
    state = make_mixer("ado").init(["a", "b"], [1.0, 1.0])
    law = {"exponent": [0.5, 0.25], "pull": [0.25, 0.25], "fitted_step": 100}
    return {**state, **law, "last_update": 399, **changes}


def test_an_update_equals_one_done_by_hand():
    # Speeds at n = 400: 0.5 * 4^-0.5 = 0.25 and 0.5 * 4^-0.25 = 0.3535534. Prior and
    # credit are equal, so the preference is 0.25 / 0.6035534 = 0.4142136 for the first domain. The
    # weight is 0.9 * 0.5 + 0.1 * 0.4142136; the mean moves by 1 / 401 of the difference.
    state, weights = make_mixer("ado").update(fitted(), 400, [5.0, 5.0], [0.5, 0.5])
    np.testing.assert_allclose(weights, [0.4914214, 0.5085786], atol=1e-7)
    np.testing.assert_allclose(state["average"][0], 0.5 - 0.0857864 / 401, atol=1e-9)


def test_credit_and_prior_enter_as_in_the_paper():
    # h = 0.9 * 0.5 + 0.1 * (0.9, 0.1) = (0.54, 0.46); pull = prior * sqrt(h) * speed
    # = (0.75 * 0.7348469 * 0.25, 0.25 * 0.6782330 * 0.3535534) = (0.1377838, 0.0599479).
    state = fitted(prior=[0.75, 0.25], pull=[0.75 * 0.5, 0.25 * 0.5])
    state, weights = make_mixer("ado", preference_share=1.0).update(
        state, 400, [5.0, 5.0], [0.9, 0.1]
    )
    np.testing.assert_allclose(state["credit"], [0.54, 0.46], rtol=1e-12)
    np.testing.assert_allclose(weights[0], 0.1377838 / (0.1377838 + 0.0599479), atol=1e-6)


def test_an_update_after_several_steps_counts_for_all_of_them():
    # 400 - 395 = 5 steps: the mean moves by 5 / 401 of the difference
    state, _ = make_mixer("ado").update(fitted(last_update=395), 400, [5.0, 5.0], [0.5, 0.5])
    np.testing.assert_allclose(state["average"][0], 0.5 - 0.0857864 * 5 / 401, atol=1e-8)


def test_the_weights_are_the_prior_until_there_are_laws():
    _, weights = after(make_mixer("ado"), laws, 89, weights=(3.0, 1.0, 1.0))
    np.testing.assert_allclose(weights, [0.6, 0.2, 0.2], rtol=1e-14)
    _, weights = after(make_mixer("ado"), laws, 90, weights=(3.0, 1.0, 1.0))
    assert np.abs(weights - [0.6, 0.2, 0.2]).max() > 1e-3


def test_known_laws_are_found_in_a_run():
    state, _ = after(make_mixer("ado"), laws, 2000)
    fitted = state["fitted_step"]
    assert fitted == 2000 // 80 * 80  # the last multiple of the width
    true = [0.5 * 3.0 * fitted**-0.5, 0.1 * 2.0 * fitted**-0.1, 0.0]
    np.testing.assert_allclose(state["learning_speed"], true, rtol=0.02, atol=1e-12)
    np.testing.assert_allclose(state["exponent"][:2], [0.5, 0.1], rtol=0.1)


def test_a_domain_that_cannot_be_learnt_falls_to_the_smallest_probability():
    mixer = make_mixer("ado", preference_share=1.0)
    _, weights = after(mixer, laws, 500)
    assert weights[2] == pytest.approx(0.01, rel=0.02)
    _, weights = after(make_mixer("ado"), laws, 2000)
    assert weights[2] < 0.1


def test_with_many_domains_the_smallest_probability_is_a_quarter_of_uniform():
    size = 1000
    mixer = make_mixer("ado", preference_share=1.0)
    state = mixer.init([f"d{i}" for i in range(size)], np.ones(size))
    speed = [0.5] + [0.0] * (size - 1)
    state |= {"exponent": [0.5] * size, "pull": speed, "fitted_step": 100}
    _, weights = mixer.update(state, 400, np.ones(size), np.full(size, 1 / size))
    assert weights[1:].max() == pytest.approx(0.25 / size / 1.24975, rel=1e-6)


def test_a_domain_without_enough_points_learns_at_the_mean_speed():
    def without_last(step):
        return [*laws(step)[:2], np.nan if step > 20 else 5.0]

    state, _ = after(make_mixer("ado"), without_last, 200)
    first, second, third = state["learning_speed"]
    assert third == pytest.approx((first + second) / 2, rel=1e-12)


def test_absent_losses_do_not_change_a_curve():
    rng = np.random.default_rng(3)

    def sometimes(step):
        losses = np.array(laws(step))
        losses[rng.random(3) < 0.5] = np.nan
        return losses

    state, _ = after(make_mixer("ado"), sometimes, 2000)
    fitted = state["fitted_step"]
    true = [0.5 * 3.0 * fitted**-0.5, 0.1 * 2.0 * fitted**-0.1, 0.0]
    np.testing.assert_allclose(state["learning_speed"], true, rtol=0.05, atol=1e-9)


def test_the_curves_have_at_most_31_points_and_all_steps():
    state, _ = after(make_mixer("ado"), laws, 5000)
    assert 16 <= len(state["log_steps"]) < 32
    assert sum(row[0] for row in state["counts"]) + state["open_count"][0] == 5000
    assert state["width"] == 160  # 10 at first, doubled after 320, 640, 1280 and 2560 steps


def controller():
    schedule = MixtureSchedule(3, 3)
    return MixtureController(NAMES, "ado", schedule, warmup_steps=60, update_frequency=3)


def train(mixture, steps):
    for step in steps:
        counts = mixture.draw(step, 8).counts(3).astype(float)
        losses = np.array(laws(step)) + 0.1 * np.sin([step, 2 * step, 3 * step])
        mixture.observe(step, Signal.from_means(losses, counts * 64, counts))


@pytest.mark.parametrize("stop", [30, 89, 95, 321, 650])
def test_a_run_resumes_exactly_before_and_after_every_kind_of_change(stop):
    whole, first, second = controller(), controller(), controller()
    train(whole, range(1, 700))
    train(first, range(1, stop + 1))
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    train(second, range(stop + 1, 700))
    assert second.state_dict() == whole.state_dict()


def test_the_warm_up_is_part_of_the_curves():
    mixture = controller()
    train(mixture, range(1, 61))
    assert len(mixture.mixer_state()["log_steps"]) == 6


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"log_steps": [1.0]}, "log_steps"),
        ({"prior": [0.5, 0.5, 0.5]}, "prior"),
        ({"exponent": [0.9, 0.1, 0.1]}, "exponent"),
        ({"fitted_step": 701}, "fitted_step"),
        ({"open_mean": [1.0]}, "open_mean"),
    ],
)
def test_a_damaged_state_is_refused_with_the_field(changes, named):
    mixture = controller()
    train(mixture, range(1, 101))
    state = json.loads(json.dumps(mixture.state_dict()))
    state["mixer"] |= changes
    with pytest.raises(ValueError, match=f"^state: mixer.{named}"):
        controller().load_state_dict(state)


@pytest.mark.parametrize(
    ("option", "value", "must"),
    [
        ("credit_exponent", -0.1, "at least 0"),
        ("credit_smoothing", 1.0, r"in \[0, 1\)"),
        ("preference_share", 0.0, r"in \(0, 1\]"),
        ("min_probability", float("nan"), r"in \[0, 1\)"),
    ],
)
def test_options_out_of_range_are_refused(option, value, must):
    with pytest.raises(ValueError, match=f"^ado: {option} must be {must}, got"):
        make_mixer("ado", **{option: value})
