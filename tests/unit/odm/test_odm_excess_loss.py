"""Methods that raise domains whose loss is above a given one: doremi, dynamic_batch_loading."""

import math

import numpy as np
import pytest

from odm import make_mixer
from odm.held_out import HeldOut

GIVEN = {"doremi": "reference_losses", "dynamic_batch_loading": "target_losses"}


def mixer(method, losses, **options):
    return make_mixer(method, **{GIVEN[method]: losses}, **options)


def test_doremi_equals_two_steps_done_by_hand():
    # Excess (3.0 - 2.5, clipped 2.0 - 2.2) = (0.5, 0): p = 1 / (1 + e^-0.5) = 0.6224593, then
    # 0.999 p + 0.0005 = 0.6223369. The second step has no first domain, whose excess stays 0.5;
    # that of the other is 1.0: odds 0.6223369 e^0.5 : 0.3776631 e^1.0, so p = 0.9994754 / 1.9994754
    # = 0.4998688 and 0.999 p + 0.0005 = 0.4998689.
    method = mixer("doremi", [2.5, 2.2])
    state, weights = method.update(method.init(["a", "b"], [1.0, 1.0]), 1, [3.0, 2.0], [0.5, 0.5])
    np.testing.assert_allclose(weights, [0.6223369, 0.3776631], atol=1e-7)
    assert state["excess_loss"] == [0.5, 0.0]
    state, weights = method.update(state, 2, [np.nan, 3.2], weights)
    np.testing.assert_allclose(weights[0], 0.4998689, atol=1e-6)
    np.testing.assert_allclose(state["excess_loss"], [0.5, 1.0], rtol=1e-12)


def test_dynamic_batch_loading_equals_a_step_done_by_hand():
    # Differences (1.0, 0, 0.5) from the start (0.5, 0.25, 0.25): 1.3591409, 0.25, 0.4121803.
    method = mixer("dynamic_batch_loading", [2.0, 3.0, 1.0], smoothing=0.0)
    state = method.init(["a", "b", "c"], [2.0, 1.0, 1.0])
    _, weights = method.update(state, 1, [3.0, 1.0, 1.5], [0.5, 0.25, 0.25])
    total = 0.5 * math.e + 0.25 + 0.25 * math.exp(0.5)
    np.testing.assert_allclose(
        weights, [0.5 * math.e / total, 0.25 / total, 0.4121803 / total], atol=1e-7
    )


def test_at_the_targets_the_weights_stay():
    method = mixer("dynamic_batch_loading", [2.0, 3.0], smoothing=0.0)
    _, weights = method.update(method.init(["a", "b"], [3.0, 1.0]), 1, [1.9, 3.0], [0.5, 0.5])
    np.testing.assert_allclose(weights, [0.75, 0.25], rtol=1e-15)


def test_held_out_losses_replace_training_losses_where_they_are_given():
    method = mixer("dynamic_batch_loading", [2.0, 2.0, 2.0])
    state = method.init(["a", "b", "c"], np.ones(3))
    state, _ = method.update(state, 1, [2.0, 2.0, 2.5], np.full(3, 1 / 3))
    held_out = HeldOut.from_means([2.25, 1.0, np.nan], step=2)
    state, _ = method.update(state, 2, [9.0, 9.0, 9.0], np.full(3, 1 / 3), held_out=held_out)
    assert state["excess_loss"] == [0.25, 0.0, 0.5]


def test_doremi_compares_training_losses_with_those_of_the_reference():
    method = mixer("doremi", [2.0, 2.0])
    held_out = HeldOut.from_means([9.0, 9.0], step=1)
    state = method.init(["a", "b"], np.ones(2))
    state, _ = method.update(state, 1, [2.5, 2.0], [0.5, 0.5], held_out=held_out)
    assert state["excess_loss"] == [0.5, 0.0]


@pytest.mark.parametrize("method", GIVEN)
def test_a_domain_comes_back_from_the_smallest_weight(method):
    made = mixer(method, [1.0, 1.0])
    state, weights = made.init(["a", "b"], np.ones(2)), np.array([0.5, 0.5])
    for step in range(1, 200):
        state, weights = made.update(state, step, [9.0, 1.0], weights)
    smallest = made.smoothing / 2
    assert weights[1] == pytest.approx(smallest, rel=0.01)
    for step in range(200, 220):
        state, weights = made.update(state, step, [1.0, 9.0], weights)
    assert weights[0] == pytest.approx(smallest, rel=0.01)


@pytest.mark.parametrize("method", GIVEN)
def test_the_step_size_scales_the_excess(method):
    one, two = mixer(method, [1.0, 1.0]), mixer(method, [1.0, 1.0], step_size=0.5)
    state = one.init(["a", "b"], [1.0, 2.0])
    _, weights = one.update(state, 1, [1.4, 1.0], [0.5, 0.5])
    _, same = two.update(state, 1, [1.8, 1.0], [0.5, 0.5])
    np.testing.assert_allclose(same, weights, rtol=1e-14)


@pytest.mark.parametrize("method", GIVEN)
def test_given_losses_that_do_not_fit_are_refused(method):
    name = GIVEN[method]
    with pytest.raises(ValueError, match=f"^{method}: needs {name}, one number per domain"):
        make_mixer(method)
    with pytest.raises(ValueError, match=f"^{method}: {name} must be finite numbers, got .*nan"):
        mixer(method, [1.0, math.nan])
    with pytest.raises(ValueError, match=f"^{method}: {name} has 2 numbers, the run has 3 domains"):
        mixer(method, [1.0, 2.0]).init(["a", "b", "c"], np.ones(3))
    with pytest.raises(ValueError, match=f"^{method}: step_size must be above 0, got 0"):
        mixer(method, [1.0, 2.0], step_size=0)
    with pytest.raises(ValueError, match=rf"^{method}: smoothing must be in \[0, 1\), got 1"):
        mixer(method, [1.0, 2.0], smoothing=1)
