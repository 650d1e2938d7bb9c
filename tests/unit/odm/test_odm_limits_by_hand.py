"""Limits on the weights, in numbers worked out by hand: trust region, epoch cap, and both."""

from __future__ import annotations

import numpy as np
import pytest

from odm import MixtureController, MixtureSchedule
from odm.constraints import (
    ConstraintContext,
    EpochCap,
    Floor,
    TrustRegion,
    apply_constraints,
)
from odm.simplex import kl_divergence, total_variation


def limited(constraints, target, previous, consumed=(0, 0)) -> list[float]:
    context = ConstraintContext(np.array(previous), np.array(consumed))
    return apply_constraints(constraints, np.array(target), context=context)[0].tolist()


def test_distances_of_two_mixtures():
    even, uneven = np.array([0.5, 0.5]), np.array([0.8, 0.2])
    assert total_variation(even, uneven) == pytest.approx(0.3)
    # 0.5 ln(0.5 / 0.8) + 0.5 ln(0.5 / 0.2), and 0.8 ln(0.8 / 0.5) + 0.2 ln(0.2 / 0.5)
    assert kl_divergence(even, uneven) == pytest.approx(0.2231435513)
    assert kl_divergence(uneven, even) == pytest.approx(0.1927449190)


@pytest.mark.parametrize(
    ("region", "expected"),
    [
        (TrustRegion(max_total_variation=0.1), [0.6, 0.4]),
        (TrustRegion(max_total_variation=0.5), [0.9, 0.1]),
        # KL([0.5, 0.5] || w) = 0.2231435513
        (TrustRegion(max_kl=0.2231435513), [0.8, 0.2]),
        (TrustRegion(max_kl=1.0), [0.9, 0.1]),
    ],
)
def test_a_step_is_cut_where_the_trust_region_ends(region, expected):
    assert limited([region], [0.9, 0.1], [0.5, 0.5]) == pytest.approx(expected)


def test_a_cap_that_has_fallen_below_the_last_weights_holds_all_the_same():
    # 6 of 20 samples are left to the first domain, and 20 of the run
    cap = EpochCap(1.0, (20, 100), 34)
    region = TrustRegion(max_total_variation=0.1)
    consumed = (14, 0)
    assert limited([cap], [0.6, 0.4], [0.5, 0.5], consumed) == pytest.approx([0.3, 0.7])
    assert limited([cap, region], [0.6, 0.4], [0.5, 0.5], consumed) == pytest.approx([0.3, 0.7])
    assert limited([region], [0.3, 0.7], [0.5, 0.5], consumed) == pytest.approx([0.4, 0.6])


def test_caps_that_are_too_low_are_raised_to_what_the_floor_of_an_undrawn_domain_leaves():
    # 24, 32 and 100 samples are left, and 80 of the run: caps of 0.3 and 0.4 where 0.8 is wanted
    limits = [EpochCap(1.0, (34, 42, 100), 100), Floor((0.0, 0.0, 0.2))]
    weights = limited(limits, [0.8, 0.2, 0.0], [0.8, 0.2, 0.0], (10, 10, 0))
    assert weights == pytest.approx([0.3 * 8 / 7, 0.4 * 8 / 7, 0.2])


def test_no_floor_lifts_a_domain_of_which_nothing_is_left():
    limits = [EpochCap(1.0, (50, 50, 10), 100), Floor(0.2)]
    assert limited(limits, [0.5, 0.5, 0.0], [0.5, 0.5, 0.0], (10, 10, 10)) == [0.5, 0.5, 0.0]


def test_of_two_floors_the_higher_one_holds():
    floors = [Floor((0.3, 0.1)), Floor((0.1, 0.4))]
    for order in (floors, floors[::-1]):
        assert limited(order, [0.9, 0.1], [0.5, 0.5]) == pytest.approx([0.6, 0.4])
        assert limited(order, [0.1, 0.9], [0.5, 0.5]) == pytest.approx([0.3, 0.7])


def test_a_floor_takes_in_proportion_before_the_step_is_cut():
    # 0.4 for the first leaves 0.6 to two that stand 2 to 1
    context = ConstraintContext(np.array([0.8, 0.1, 0.1]), np.zeros(3, dtype=np.int64))
    target = np.array([0.1, 0.6, 0.3])
    weights, _ = apply_constraints([Floor((0.4, 0.0, 0.0))], target, context=context)
    assert weights.tolist() == pytest.approx([0.4, 0.4, 0.2])
    region = TrustRegion(max_total_variation=0.1)
    weights, _ = apply_constraints([Floor((0.4, 0.0, 0.0)), region], target, context=context)
    assert weights.tolist() == pytest.approx([0.7, 0.175, 0.125])


def test_a_cap_follows_the_cursors_at_steps_whose_losses_are_not_asked_for():
    """8 of 16 samples are the most that the first domain may give; the mixer wants 90 %."""
    cap = EpochCap(1.0, (8, 100), 16)
    mixture = MixtureController(
        ("small", "large"),
        "smoothed_mean",
        MixtureSchedule(3, 2),
        [cap],
        initial_weights=[0.9, 0.1],
        update_frequency=100,
    )
    for step in range(1, 5):
        left, run_left = 8 - mixture.cursors[0], 16 - mixture.cursors.sum()
        assert mixture.weights[0] == pytest.approx(min(0.9, left / run_left))
        mixture.draw(step, 4)
        mixture.observe(step, [1.0, 1.0])


def test_plans_read_ahead_are_made_anew_under_other_limits():
    """A resumed run drew the samples of step 2 by the old weights; its new floor holds there."""
    arguments = (("a", "b"), "static", MixtureSchedule(1, 2))
    before = MixtureController(*arguments, initial_weights=[0.99, 0.01])
    before.draw(1, 100)
    before.draw(2, 100)
    before.observe(1, [1.0, 1.0])
    state = before.state_dict(completed_step=1)
    assert state["planned"] == {"2": [0.99, 0.01]}

    def second_draw(*constraints: Floor) -> int:
        schedule = MixtureSchedule(1, 2)
        after = MixtureController(
            ("a", "b"), "static", schedule, constraints, initial_weights=[0.99, 0.01]
        )
        after.load_state_dict(state)
        return int(after.draw(2, 100).counts(2)[1])

    assert second_draw() < 10
    assert second_draw(Floor((0.0, 0.5))) > 30


def test_a_domain_of_weight_0_is_not_drawn_by_the_smallest_random_number(monkeypatch):
    zeros = lambda self, seed, step, count: np.zeros(count, dtype=np.uint64)  # noqa: E731
    monkeypatch.setattr("odm.schedule._RandomSource.integers", zeros)
    assert MixtureSchedule(1, 3).draw(1, [0.0, 0.5, 0.5], 4).domains.tolist() == [1, 1, 1, 1]
