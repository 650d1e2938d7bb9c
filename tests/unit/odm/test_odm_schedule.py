from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from odm import MixtureSchedule, plan_draw
from odm import schedule as schedule_module

WEIGHTS = np.array([0.5, 0.3, 0.2])
ZERO = np.zeros(3, dtype=np.int64)


def plan(seed=7, step=3, weights=WEIGHTS, cursors=ZERO, num_slots=64, **options):
    return plan_draw(seed, step, weights=weights, cursors=cursors, num_slots=num_slots, **options)


def test_the_plan_of_a_known_seed_never_changes():
    # A change here changes every run: Philox is specified by numpy to be stable.
    draw = plan(num_slots=12)
    assert draw.domains.tolist() == [0, 1, 0, 0, 1, 0, 1, 0, 1, 0, 2, 1]


def test_a_plan_depends_on_seed_and_step_and_nothing_before():
    schedule = MixtureSchedule(7, 3)
    for step in (1, 2):
        schedule.draw(step, WEIGHTS, 64)
    np.testing.assert_array_equal(schedule.draw(3, WEIGHTS, 64).domains, plan().domains)
    assert not np.array_equal(plan(step=4).domains, plan().domains)
    assert not np.array_equal(plan(seed=8).domains, plan().domains)


@given(num_slots=st.integers(1, 200), more=st.integers(1, 200))
@settings(max_examples=50)
def test_the_plan_of_a_slot_does_not_depend_on_how_many_follow(num_slots, more):
    short, long = plan(num_slots=num_slots), plan(num_slots=num_slots + more)
    np.testing.assert_array_equal(long.domains[:num_slots], short.domains)
    np.testing.assert_array_equal(long.positions[:num_slots], short.positions)


def test_ranks_that_take_slices_of_one_plan_read_every_sample_once():
    whole = plan(num_slots=96, cursors=np.array([5, 0, 100]))
    pairs = set()
    for rank in range(4):  # micro-batch g of rank r: slots (g * 4 + r) * 8 ...
        for micro_batch in range(3):
            start = (micro_batch * 4 + rank) * 8
            slots = slice(start, start + 8)
            pairs |= set(
                zip(whole.domains[slots].tolist(), whole.positions[slots].tolist(), strict=True)
            )
    assert len(pairs) == 96
    for domain, first in enumerate([5, 0, 100]):
        taken = sorted(position for d, position in pairs if d == domain)
        assert taken == list(range(first, first + len(taken)))


@settings(max_examples=50)
@given(
    weights=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=8),
    run_length=st.integers(1, 6),
    groups=st.integers(1, 30),
    stratified=st.booleans(),
    step=st.integers(0, 2**40),
)
def test_positions_count_up_from_the_cursors_in_slot_order(
    weights, run_length, groups, stratified, step
):
    schedule = MixtureSchedule(1, len(weights), stratified=stratified)
    before = schedule.cursors
    draw = schedule.draw(step, weights, groups * run_length, run_length=run_length)
    after = schedule.cursors
    assert after.sum() - before.sum() == groups * run_length
    for domain in range(len(weights)):
        np.testing.assert_array_equal(
            draw.positions[draw.domains == domain], np.arange(before[domain], after[domain])
        )


@pytest.mark.parametrize("stratified", [False, True])
def test_runs_of_slots_share_a_domain(stratified):
    draw = plan(num_slots=40, run_length=4, stratified=stratified)
    groups = draw.domains.reshape(10, 4)
    assert (groups == groups[:, :1]).all()
    assert len(set(groups[:, 0].tolist())) > 1


def test_a_run_of_slots_has_the_domain_of_its_group():
    np.testing.assert_array_equal(
        plan(num_slots=40, run_length=4).domains[::4], plan(num_slots=10).domains
    )


def test_draws_follow_the_weights():
    counts = sum(plan(step=step, num_slots=1000).counts(3) for step in range(100))
    expected = WEIGHTS * 100_000
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 13.8  # p = 0.001, two degrees of freedom


def test_neighbouring_slots_and_steps_are_independent():
    table = np.stack([plan(step=step, num_slots=200).domains for step in range(200)])
    for first, second in ((table[:, :-1], table[:, 1:]), (table[:-1], table[1:])):
        pairs = np.bincount((first * 3 + second).ravel(), minlength=9)
        expected = np.outer(WEIGHTS, WEIGHTS).ravel() * first.size
        assert ((pairs - expected) ** 2 / expected).sum() < 26.1  # p = 0.001, 8 degrees


@settings(max_examples=100)
@given(
    weights=st.lists(st.floats(0.0, 1.0), min_size=2, max_size=12).filter(lambda w: sum(w) > 0.1),
    step=st.integers(0, 10**6),
    num_slots=st.integers(1, 200),
)
def test_stratified_counts_are_within_one_of_their_expectation(weights, step, num_slots):
    draw = plan(
        step=step,
        weights=weights,
        cursors=np.zeros(len(weights), dtype=np.int64),
        num_slots=num_slots,
        stratified=True,
    )
    expected = np.array(weights) / np.sum(weights) * num_slots
    assert (np.abs(draw.counts(len(weights)) - expected) < 1 + 1e-6).all()


def test_stratified_slots_are_in_random_order():
    first = [plan(step=step, num_slots=10, stratified=True).domains[0] for step in range(3000)]
    expected = WEIGHTS * 3000
    chi_square = ((np.bincount(first, minlength=3) - expected) ** 2 / expected).sum()
    assert chi_square < 13.8


@pytest.mark.parametrize("stratified", [False, True])
def test_a_domain_of_weight_zero_is_never_drawn(stratified):
    weights = [0.0, 0.5, 0.0, 0.5, 0.0]
    for step in range(50):
        draw = plan(
            step=step,
            weights=weights,
            cursors=np.zeros(5, dtype=np.int64),
            num_slots=100,
            stratified=stratified,
        )
        assert set(draw.domains.tolist()) == {1, 3}


def test_weights_need_not_be_normalised():
    np.testing.assert_array_equal(plan(weights=WEIGHTS * 8).domains, plan().domains)


def test_cursors_are_the_whole_state():
    first = MixtureSchedule(7, 3)
    for step in range(1, 6):
        first.draw(step, WEIGHTS, 33)
    second = MixtureSchedule(7, 3)
    second.set_cursors(first.cursors.tolist())
    one, two = first.draw(6, WEIGHTS, 33), second.draw(6, WEIGHTS, 33)
    np.testing.assert_array_equal(one.domains, two.domains)
    np.testing.assert_array_equal(one.positions, two.positions)


def test_cursors_are_returned_as_copies():
    schedule = MixtureSchedule(7, 3)
    schedule.cursors[0] = 99
    assert schedule.cursors.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_slots": 10, "run_length": 4}, "multiple of run_length, got 10 and 4"),
        ({"num_slots": 0}, "num_slots must be .* at least 1, got 0"),
        ({"run_length": 0}, "run_length must be .* at least 1, got 0"),
        ({"weights": [1.0, 2.0]}, "expected 3 weights"),
        ({"weights": [1.0, np.nan, 1.0]}, "finite, not negative and not all 0"),
        ({"weights": [1.0, -0.1, 1.0]}, "finite, not negative and not all 0"),
        ({"weights": [0.0, 0.0, 0.0]}, "finite, not negative and not all 0"),
        ({"weights": [1.0, np.inf, 1.0]}, "finite, not negative and not all 0"),
        ({"step": -1}, "step must be .* from 0 to 18446744073709551615, got -1"),
        ({"seed": -1}, "seed must be .* from 0 to 18446744073709551615, got -1"),
    ],
)
def test_unusable_plans_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        plan(**options)


@given(st.integers(0, 99), st.integers(1, 40), st.booleans())
def test_few_slots_and_many_are_planned_alike(step, num_slots, stratified):
    plans = []
    for few in (0, num_slots):
        with mock.patch.object(schedule_module, "_FEW_SLOTS", few):
            plans.append(plan(step=step, num_slots=num_slots, stratified=stratified))
    few, many = plans
    np.testing.assert_array_equal(few.domains, many.domains)
    np.testing.assert_array_equal(few.positions, many.positions)
    assert few.positions.dtype == many.positions.dtype


@pytest.mark.parametrize("cursors", [[1, 2], [1, 2, -3], [1.5, 2.0, 3.0]])
def test_unusable_cursors_are_refused(cursors):
    with pytest.raises(ValueError, match="cursors"):
        MixtureSchedule(7, 3).set_cursors(cursors)


@pytest.mark.parametrize("num_slots", [40, 400])
def test_positions_of_a_domain_count_up_however_many_domains_there_are(num_slots):
    """Domains 3, 259 and 65795 end in the same byte, and all but the second in the same two."""
    weights = np.zeros(66_000)
    weights[[3, 259, 65_795]] = 1.0
    draw = plan_draw(5, 1, weights=weights, cursors=np.arange(66_000), num_slots=num_slots)
    assert set(draw.domains.tolist()) == {3, 259, 65_795}
    for domain in (3, 259, 65_795):
        positions = draw.positions[draw.domains == domain]
        assert positions.tolist() == list(range(domain, domain + len(positions)))


def test_many_domains_and_slots_are_planned_in_well_under_a_millisecond():
    import timeit

    schedule, weights = MixtureSchedule(1, 1000), np.random.default_rng(0).random(1000)
    seconds = min(timeit.repeat(lambda: schedule.draw(5, weights, 1024), number=50, repeat=5)) / 50
    assert seconds < 1e-3  # 60 us on a quiet core; a Python loop over slots takes 2 ms
