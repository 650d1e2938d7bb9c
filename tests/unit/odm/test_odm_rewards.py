"""The losses that a mixer learns from: numbers by hand, and what a controller does with them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from odm import HeldOut, MixtureController, MixtureSchedule, Reward, Signal, make_mixer

NAN = math.nan


def controller(method: str, num_domains: int = 3, **options) -> MixtureController:
    names = [f"d{k}" for k in range(num_domains)]
    return MixtureController(names, make_mixer(method), MixtureSchedule(1, num_domains), **options)


def held_out(losses, change=None) -> HeldOut:
    """A measurement; ``change`` since the one before, nan if unknown."""
    unknown = np.full(len(losses), NAN)
    change = unknown if change is None else change
    log_step = np.zeros(len(losses))
    return HeldOut(losses, unknown, unknown, log_step, change, unknown, unknown)


TRAINING = np.array([2.0, 3.0, NAN])
PRESENT = np.array([True, True, False])


@pytest.mark.parametrize(
    ("options", "change", "expected"),
    [
        ({}, None, [0.5, 0.25]),  # V - L
        ({"batch_normalized": True}, None, [1.0, 0.0]),  # (g - min) / (max - min)
        # g (last V - V), where the domain has been measured before
        ({"scaled_by_loss_diff": True}, [-0.2, NAN, -1.0], [0.5 * 0.2, 0.25]),
        ({"scaled_by_loss_diff": True}, [-0.2, 0.4, -1.0], [0.1, -0.1]),
        ({"scaled_by_loss_diff": True, "batch_normalized": True}, [-0.2, 0.4, NAN], [1.0, 0.0]),
    ],
)
def test_the_generalization_reward_is_the_research_codes(options, change, expected):
    reward = Reward("generalization", **options)
    measured = held_out([2.5, 3.25, 9.0], change)
    losses, present = reward.losses(TRAINING, PRESENT, measured)
    assert present.tolist() == [True, True, False]
    assert losses.tolist() == pytest.approx([*expected, 0.0])


def test_equal_generalization_rewards_are_normalised_to_zero():
    reward = Reward("generalization", batch_normalized=True)
    one = np.array([True, False, False])
    losses, present = reward.losses(TRAINING, one, held_out([2.5, 3.0, 3.0]))
    assert losses.tolist() == [0.0, 0.0, 0.0]
    assert present.tolist() == [True, False, False]


def test_exp3_with_the_generalization_reward_equals_the_research_code_by_hand():
    """One domain per step, as its loop feeds one domain at a time: C_d += (g / 10) / p_d, then

    w = exp(C eps_before) (1 - K eps) / sum exp(C eps_before) + eps, eps = sqrt(ln K / (K t)).
    """
    mixture = controller("exp3", 2, reward="generalization")
    rewards = {20: (0, 2.5 - 2.0), 21: (1, 3.25 - 3.5)}
    mixture.observe(20, [2.0, NAN], held_out=held_out([2.5, 3.0]))
    eps = [0.5, math.sqrt(math.log(2) / (2 * 20)), math.sqrt(math.log(2) / (2 * 21))]
    total = [rewards[20][1] / 10 / 0.5, 0.0]
    shares = np.exp(np.array(total) * eps[0])
    first = shares / shares.sum() * (1 - 2 * eps[1]) + eps[1]
    assert mixture.weights == pytest.approx(first, rel=1e-12)
    mixture.observe(21, [NAN, 3.5], held_out=held_out([2.4, 3.25]))
    total[1] = rewards[21][1] / 10 / first[1]
    shares = np.exp(np.array(total) * eps[1])
    assert mixture.weights == pytest.approx(
        shares / shares.sum() * (1 - 2 * eps[2]) + eps[2], rel=1e-12
    )


def test_naive_validation_with_held_out_losses_equals_the_research_code_by_hand():
    mixture = controller("naive_validation", reward="heldout")
    mixture.observe(10, [1.0, NAN, NAN], held_out=held_out([2.0, 3.0, 2.5]))
    eps = math.sqrt(math.log(3) / 30)
    shares = np.exp(np.array([0.0, 1.0, 0.5]) / 3)  # eps before the first update: 1 / K
    expected = shares / shares.sum() * (1 - 3 * eps) + eps
    assert mixture.weights == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("method", ["smoothed_mean", "odm_paper", "exp3", "ema"])
def test_held_out_losses_take_the_place_of_training_losses(method):
    mixture, plain = controller(method, reward="heldout"), controller(method)
    losses = np.array([2.0, 3.0, 4.0])
    for step in range(1, 20):
        mixture.observe(step, 7.0 - losses, held_out=held_out(losses))
        plain.observe(step, losses)
    assert mixture.weights.tolist() == plain.weights.tolist()
    assert mixture.mixer_state() == plain.mixer_state()


@pytest.mark.parametrize("method", ["smoothed_mean", "exp3", "naive_validation"])
def test_a_step_without_a_measurement_changes_nothing(method):
    mixture = controller(method, reward="heldout")
    mixture.observe(30, [1.0, 2.0, 3.0], held_out=held_out([1.0, 2.0, 3.0]))
    weights, state = mixture.weights, mixture.mixer_state()
    decision = mixture.observe(31, [9.0, 2.0, 3.0])
    assert not decision.updated
    assert mixture.weights.tolist() == weights.tolist()
    assert mixture.mixer_state() == state


def test_training_losses_move_the_weights_whatever_is_measured_besides():
    mixture, plain = controller("smoothed_mean"), controller("smoothed_mean")
    for step in range(1, 10):
        mixture.observe(step, [1.0, 2.0, 3.0], held_out=held_out([3.0, 2.0, 1.0]))
        plain.observe(step, [1.0, 2.0, 3.0])
    assert mixture.state_dict() == plain.state_dict()
    assert "reward" not in plain.describe()


@pytest.mark.parametrize("method", ["exp3", "odm_paper"])
def test_a_domain_of_weight_0_with_a_held_out_loss_counts_as_absent(method):
    mixture = controller(method, reward="heldout", initial_weights=[1.0, 1.0, 0.0])
    mixture.observe(1, [1.0, 2.0, NAN], held_out=held_out([1.0, 2.0, 3.0]))
    estimate = mixture.mixer_state()[mixture.mixer.estimate]
    assert estimate[0] > 0
    assert estimate[2] == 0.0


def test_what_a_mixer_is_told_about_held_out_losses():
    seen = []

    class Seeing(type(make_mixer("smoothed_mean"))):
        def _update(self, state, observation):
            seen.append(observation)
            return super()._update(state, observation)

    mixture = MixtureController(["a", "b"], Seeing(), MixtureSchedule(1, 2), reward="heldout")
    measured = HeldOut.from_means([2.0, 3.0], step=8, token_count=[40.0, 60.0])
    mixture.observe(9, Signal.from_means([1.0, 1.0], [10.0, 10.0]), held_out=measured)
    (observation,) = seen
    assert observation.held_out is measured
    assert observation.signal is None
    assert observation.losses.tolist() == [2.0, 3.0]


def test_the_reward_is_part_of_the_state_and_another_one_is_reported(caplog):
    mixture = controller("smoothed_mean", reward="heldout")
    mixture.observe(5, [1.0, 1.0, 1.0], held_out=held_out([1.0, 2.0, 3.0]))
    saved = mixture.state_dict()
    assert Reward(**saved["configuration"]["reward"]) == Reward("heldout")
    resumed = controller("smoothed_mean")
    resumed.load_state_dict(saved)
    assert "reward was {'source': 'heldout'" in caplog.text
    assert resumed.weights.tolist() == mixture.weights.tolist()


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda: Reward("validation"), "must be one of train, heldout, generalization"),
        (lambda: Reward("heldout", batch_normalized=True), "only for the source generalization"),
        (lambda: controller("static", reward="heldout"), "static does not learn from losses"),
    ],
)
def test_what_does_not_go_together_is_refused(reward, message):
    with pytest.raises(ValueError, match=message):
        reward()
