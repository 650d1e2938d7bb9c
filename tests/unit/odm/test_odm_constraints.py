import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from odm import Ceiling, EpochCap, Floor, MixtureController, MixtureSchedule, TrustRegion
from odm.constraints import ConstraintContext, apply_constraints
from odm.simplex import kl_divergence, normalize, total_variation


def apply(constraints, target, *, previous=None, consumed=None):
    target = normalize(np.array(target, dtype=float))
    previous = target if previous is None else normalize(np.array(previous, dtype=float))
    consumed = np.zeros(target.size, dtype=np.int64) if consumed is None else np.array(consumed)
    return apply_constraints(constraints, target, context=ConstraintContext(previous, consumed))


shares = st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=10)


@settings(max_examples=200)
@given(target=shares, floor=st.floats(0, 1), ceiling=st.floats(0, 1))
def test_floor_and_ceiling_hold_and_the_weights_sum_to_one(target, floor, ceiling):
    num_domains = len(target)
    floor, ceiling = floor / num_domains, 1 / num_domains + ceiling * (1 - 1 / num_domains)
    weights, _ = apply([Floor(floor), Ceiling(ceiling)], target)
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert weights.min() >= floor - 1e-12
    assert weights.max() <= ceiling + 1e-12


@settings(max_examples=100)
@given(
    target=shares, floor=st.floats(0.1, 0.9), ceiling=st.floats(0.1, 0.9), seed=st.integers(0, 99)
)
def test_no_other_allowed_weights_are_closer_in_relative_entropy(target, floor, ceiling, seed):
    num_domains = len(target)
    floor, ceiling = floor / num_domains, 1 / num_domains + ceiling * (1 - 1 / num_domains)
    wanted = normalize(np.array(target))
    weights, _ = apply([Floor(floor), Ceiling(ceiling)], target)
    rng = np.random.default_rng(seed)
    for _ in range(20):
        # Move mass between two domains, as far as the bounds allow.
        giver, taker = rng.choice(num_domains, size=2, replace=False)
        room = min(weights[giver] - floor, ceiling - weights[taker])
        other = weights.copy()
        other[giver] -= room * 0.5
        other[taker] += room * 0.5
        if room > 0:
            assert kl_divergence(other, wanted) >= kl_divergence(weights, wanted) - 1e-9


def bisected(target, lower, upper):
    """``clip(theta * target, lower, upper)`` that sums to 1, log theta by bisection."""
    with np.errstate(divide="ignore"):
        logs = np.log(target)

    def clipped(log_theta):
        with np.errstate(over="ignore"):
            return np.clip(np.exp(logs + log_theta), lower, upper)

    low, high = -1500.0, 1500.0
    for _ in range(80):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if clipped(middle).sum() < 1 else (low, middle)
    return clipped(high)


@settings(max_examples=300)
@given(seed=st.integers(0, 10**6), decades=st.sampled_from([1, 5, 20, 100, 300, 320]))
def test_bounds_give_what_bisection_gives_however_far_the_weights_are_apart(seed, decades):
    rng = np.random.default_rng(seed)
    num_domains = int(rng.integers(2, 8))
    target = normalize(10.0 ** (-decades * rng.random(num_domains)))
    lower = rng.random(num_domains) ** 3
    lower *= rng.choice([0.0, 0.3, 0.95]) / lower.sum()
    upper = np.minimum(1.0, lower + rng.random(num_domains) * rng.choice([0.2, 0.5, 1.0]))
    if upper[target > 0].sum() < 1.001:
        upper = np.ones(num_domains)
    weights, _ = apply([Floor(tuple(lower)), Ceiling(tuple(upper))], target)
    np.testing.assert_allclose(weights, bisected(target, lower, upper), rtol=0, atol=1e-9)
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert (weights >= lower).all()
    assert (weights <= upper).all()


def test_floors_whose_sum_is_rounded_up_leave_a_sum_of_one():
    weights, _ = apply([Floor(0.3333333334)], [0.5, 0.3, 0.2])
    assert weights.sum() == pytest.approx(1, abs=1e-12)


def test_a_ceiling_without_slack_leaves_no_rounding_error_in_the_sum():
    weights, _ = apply([Ceiling(0.5 + 5e-13)], [1.0, 1e-6])
    assert weights.sum() == pytest.approx(1, abs=1e-15)


def test_floor_takes_from_the_others_in_proportion():
    weights, effects = apply([Floor(0.1)], [0.02, 0.38, 0.60])
    np.testing.assert_allclose(weights, [0.1, 0.9 * 0.38 / 0.98, 0.9 * 0.60 / 0.98], rtol=1e-12)
    assert effects == {"order": ["floor"], "floor": [0]}


def test_weights_within_the_bounds_are_returned_unchanged():
    weights, effects = apply([Floor(0.1), Ceiling(0.8)], [0.25, 0.25, 0.5])
    assert weights.tolist() == [0.25, 0.25, 0.5]
    assert effects["floor"] == effects["ceiling"] == []


def test_bounds_may_differ_between_domains():
    weights, _ = apply([Floor((0.3, 0.0, 0.0)), Ceiling((1.0, 0.2, 1.0))], [0.1, 0.6, 0.3])
    np.testing.assert_allclose(weights, [0.3, 0.2, 0.5], rtol=1e-12)


def test_a_domain_of_weight_zero_is_lifted_to_the_floor_and_no_further():
    weights, _ = apply([Floor(0.1), Ceiling(0.6)], [0.0, 0.9, 0.1])
    np.testing.assert_allclose(weights, [0.1, 0.6, 0.3], rtol=1e-12)


@settings(max_examples=100)
@given(previous=shares, seed=st.integers(0, 999), limit=st.floats(1e-4, 0.5))
def test_trust_region_limits_the_move_by_either_measure(previous, seed, limit):
    target = np.random.default_rng(seed).random(len(previous)) + 1e-3
    before, wanted = normalize(np.array(previous)), normalize(target)
    weights, _ = apply([TrustRegion(max_total_variation=limit)], target, previous=previous)
    distance = total_variation(before, weights)
    assert distance <= limit * (1 + 1e-9)
    assert distance == pytest.approx(min(limit, total_variation(before, wanted)), rel=1e-6)
    weights, effects = apply([TrustRegion(max_kl=limit)], target, previous=previous)
    assert kl_divergence(before, weights) <= limit * (1 + 1e-9)
    assert effects["trust_region"] == 1.0 or kl_divergence(before, weights) > 0.99 * limit


def test_trust_region_keeps_the_floor():
    weights, effects = apply(
        [TrustRegion(max_total_variation=0.01), Floor(0.2)], [0.0, 0.0, 1.0], previous=[1, 1, 1]
    )
    assert weights.min() >= 0.2
    assert effects["order"] == ["floor", "trust_region"]
    assert 0 < effects["trust_region"] < 1


def test_the_order_in_which_constraints_are_listed_does_not_matter():
    constraints = [TrustRegion(max_kl=0.01), Ceiling(0.5), Floor(0.05)]
    one, _ = apply(constraints, [0.9, 0.1, 0.0], previous=[1, 1, 1])
    two, _ = apply(constraints[::-1], [0.9, 0.1, 0.0], previous=[1, 1, 1])
    assert one.tolist() == two.tolist()


def test_epoch_cap_is_what_is_left_of_the_domain_over_what_is_left_of_the_run():
    cap = EpochCap(max_epochs=2, domain_sizes=(10, 1000), total_samples=100)
    weights, effects = apply([cap], [0.5, 0.5], consumed=[8, 32])
    np.testing.assert_allclose(weights, [(20 - 8) / 60, 48 / 60], rtol=1e-12)
    assert effects["epoch_cap"] == [0]


@pytest.mark.parametrize("stratified", [False, True])
def test_epoch_cap_holds_over_a_whole_run_and_uses_the_domain_up(stratified):
    cap = EpochCap(max_epochs=4, domain_sizes=(20, 5000, 5000), total_samples=4000)
    controller = MixtureController(
        ["tiny", "web", "code"],
        "static",
        MixtureSchedule(3, 3, stratified=stratified),
        [cap, Floor(0.01)],
    )
    for step in range(1, 251):
        controller.draw(step, 16)
        controller.observe(step, [2.0, 3.0, 4.0])
    tiny, web, code = controller.cursors.tolist()
    assert 78 <= tiny <= (81 if stratified else 90)
    assert abs(web - code) < 400
    assert controller.weights[0] < 0.05


def test_equal_weights_under_an_epoch_cap_are_unimax():
    # Budget 1000 over sizes 50, 200, 5000 at one epoch: 50, 200, and the rest to the largest.
    cap = EpochCap(max_epochs=1, domain_sizes=(50, 200, 5000), total_samples=1000)
    weights, _ = apply([cap], [1, 1, 1])
    np.testing.assert_allclose(weights, [0.05, 0.2, 0.75], rtol=1e-12)


def test_after_the_planned_run_only_domains_with_something_left_are_drawn():
    cap = EpochCap(max_epochs=1, domain_sizes=(10, 100), total_samples=50)
    weights, _ = apply([cap], [0.5, 0.5], consumed=[10, 40])
    assert weights.tolist() == [0.0, 1.0]
    weights, _ = apply([cap], [0.5, 0.5], consumed=[10, 100])
    assert weights.tolist() == [0.5, 0.5]


def test_a_cap_wins_over_a_floor():
    cap = EpochCap(max_epochs=1, domain_sizes=(10, 1000), total_samples=500)
    weights, _ = apply([cap, Floor(0.1)], [0.5, 0.5], consumed=[10, 90])
    assert weights.tolist() == [0.0, 1.0]


def test_a_budget_that_does_not_fit_is_refused_with_the_numbers():
    with pytest.raises(
        ValueError, match=r"2 epochs of the domains are 220 samples.*draws 500.*at least 4.545 or"
    ):
        EpochCap(max_epochs=2, domain_sizes=(10, 100), total_samples=500)
    with pytest.raises(
        ValueError, match=r"\[5, 1\] epochs .* are 150 samples.*draws 300.*at least \[10, 2\] or"
    ):
        EpochCap(max_epochs=(5, 1), domain_sizes=(10, 100), total_samples=300)


def test_epoch_caps_may_differ_between_domains():
    cap = EpochCap(max_epochs=(1, 20, 4), domain_sizes=(10, 20, 1000), total_samples=100)
    weights, effects = apply([cap], [0.4, 0.4, 0.2])
    np.testing.assert_allclose(weights, [0.1, 0.6, 0.3], rtol=1e-12)
    assert effects["epoch_cap"] == [0]
    assert cap.options()["max_epochs"] == [1.0, 20.0, 4.0]


def test_a_cap_that_random_draws_used_up_too_fast_does_not_end_the_run():
    """A domain of 410 samples has to take half of 800, the ceiling of the other: noise decides."""
    constraints = [EpochCap(1, (410, 5000), 800), Ceiling((1.0, 0.5))]
    for seed in range(20):
        controller = MixtureController(
            ["small", "large"], "static", MixtureSchedule(seed, 2), constraints
        )
        for step in range(1, 101):
            controller.draw(step, 8)
            weights = controller.observe(step, [2.0, 3.0]).weights_after
            assert weights.sum() == pytest.approx(1, abs=1e-12)
        assert abs(controller.cursors[0] - 400) < 60


@pytest.mark.parametrize("sizes", [(30, 50, 400), (35, 45, 400)])
def test_a_run_that_uses_up_all_that_it_draws_goes_on_beside_a_domain_of_weight_zero(sizes):
    cap = EpochCap(1, sizes, total_samples=80)
    for seed in range(10):
        controller = MixtureController(
            ["a", "b", "unused"],
            "static",
            MixtureSchedule(seed, 3),
            [cap],
            initial_weights=[sizes[0], sizes[1], 0],
        )
        for step in range(1, 23):
            controller.draw(step, 4)
            weights = controller.observe(step, [2.0, 3.0, np.nan]).weights_after
            assert weights.sum() == pytest.approx(1, abs=1e-12)
        assert controller.cursors[2] == 0


def test_bounds_that_never_could_hold_are_refused_at_the_start():
    with pytest.raises(ValueError, match=r"positive weight to 0\.625"):
        apply([EpochCap(1, (100, 1000), 800), Ceiling((1.0, 0.5))], [1, 1])


def test_bounds_that_cannot_hold_are_refused_with_the_sums():
    with pytest.raises(ValueError, match=r"lower bounds sum to 1.2"):
        apply([Floor(0.4)], [0.2, 0.3, 0.5])
    with pytest.raises(ValueError, match=r"positive weight to 0\.6"):
        apply([Ceiling(0.3)], [0.5, 0.5, 0.0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Floor(-0.1), r"floor: minimum must be in \[0, 1\]"),
        (lambda: Ceiling(1.5), r"ceiling: maximum must be in \[0, 1\]"),
        (lambda: TrustRegion(), "give either max_kl or max_total_variation"),
        (lambda: TrustRegion(max_kl=0.1, max_total_variation=0.1), "either max_kl or"),
        (lambda: TrustRegion(max_kl=0.0), "above 0"),
        (lambda: EpochCap(0, (10,), 5), "max_epochs must be above 0"),
        (lambda: EpochCap((1, float("inf")), (10, 10), 5), "max_epochs must be above 0"),
        (lambda: EpochCap((1, 1), (10, 10, 10), 5), "max_epochs has 2 numbers, .* 3 domains"),
        (lambda: apply([Floor((0.1, 0.1))], [1, 1, 1]), "has 2 numbers, the run has 3 domains"),
    ],
)
def test_unusable_limits_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
