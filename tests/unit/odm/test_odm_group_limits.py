import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from odm import (
    Ceiling,
    EpochCap,
    Floor,
    GroupLimits,
    MixtureController,
    MixtureSchedule,
    TrustRegion,
)
from odm.constraints import ConstraintContext, apply_constraints
from odm.replay import controller_from_description
from odm.simplex import kl_divergence, normalize, total_variation


def apply(constraints, target, *, previous=None, consumed=None):
    target = normalize(np.array(target, dtype=float))
    previous = target if previous is None else normalize(np.array(previous, dtype=float))
    consumed = np.zeros(target.size, dtype=np.int64) if consumed is None else np.array(consumed)
    return apply_constraints(constraints, target, context=ConstraintContext(previous, consumed))


def code(*members, minimum=0.0, maximum=1.0):
    return GroupLimits(("code",), (members,), (minimum,), (maximum,))


def test_a_group_above_its_maximum_is_scaled_down_and_the_others_up():
    weights, effects = apply([code(0, 1, maximum=0.3)], [0.4, 0.2, 0.3, 0.1])
    np.testing.assert_allclose(weights, [0.2, 0.1, 0.525, 0.175], rtol=1e-12)
    assert effects == {"order": ["group_limits"], "group_limits": ["code"]}


def test_a_group_below_its_minimum_is_scaled_up():
    weights, _ = apply([code(0, 1, minimum=0.6)], [0.1, 0.2, 0.6, 0.1])
    np.testing.assert_allclose(weights, [0.2, 0.4, 0.4 * 6 / 7, 0.4 / 7], rtol=1e-12)


def test_groups_within_their_bounds_change_nothing():
    weights, effects = apply([code(0, 1, minimum=0.1, maximum=0.7)], [0.4, 0.2, 0.3, 0.1])
    assert weights.tolist() == normalize(np.array([0.4, 0.2, 0.3, 0.1])).tolist()
    assert effects["group_limits"] == []


def test_what_one_group_gives_up_does_not_lift_another_above_its_maximum():
    limits = GroupLimits(("one", "two"), ((0,), (1, 2)), (0.0, 0.0), (0.2, 0.5))
    weights, effects = apply([limits], [0.5, 0.2, 0.2, 0.1])
    np.testing.assert_allclose(weights, [0.2, 0.25, 0.25, 0.3], rtol=1e-12)
    assert effects["group_limits"] == ["one", "two"]


def test_a_group_that_nobody_draws_shares_its_minimum_equally():
    weights, _ = apply([code(0, 1, minimum=0.4)], [0.0, 0.0, 0.5, 0.5])
    np.testing.assert_allclose(weights, [0.2, 0.2, 0.3, 0.3], rtol=1e-12)


def test_bounds_of_domains_hold_within_a_limited_group():
    limits = [code(0, 1, 2, maximum=0.5), Floor((0.2, 0, 0, 0)), Ceiling((1, 0.1, 1, 1))]
    weights, _ = apply(limits, [0.1, 0.4, 0.4, 0.1])
    np.testing.assert_allclose(weights, [0.2, 0.1, 0.2, 0.5], rtol=1e-12)


@st.composite
def problems(draw):
    """Target, bounds of domains and disjoint groups for which allowed weights exist."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    num_domains = int(rng.integers(3, 9))
    decades = draw(st.sampled_from([1, 5, 20]))
    target = normalize(10.0 ** (-decades * rng.random(num_domains)))
    inside = normalize(rng.random(num_domains) + 0.05)  # satisfies everything
    lower = inside * rng.random(num_domains) * rng.choice([0.0, 0.9])
    upper = np.minimum(1.0, inside + rng.random(num_domains) * rng.choice([0.3, 1.0]))
    owners = rng.integers(0, 4, num_domains)  # 3: in no group
    members = [np.flatnonzero(owners == number) for number in range(3)]
    members = [part for part in members if part.size]
    sums = [min(1.0, inside[part].sum()) for part in members]  # rounding may exceed 1
    low = tuple(float(total * rng.choice([0.0, 0.5, 1.0])) for total in sums)
    high = tuple(float(min(1.0, total + (1 - total) * rng.choice([0, 0.3, 1]))) for total in sums)
    return target, inside, lower, upper, members, low, high


@settings(max_examples=200)
@given(problem=problems())
def test_the_projection_is_exact_and_keeps_ratios_within_groups(problem):
    target, inside, lower, upper, members, low, high = problem
    names = tuple(f"g{number}" for number in range(len(members)))
    limits = [Floor(tuple(lower)), Ceiling(tuple(upper))]
    if members:
        limits.append(GroupLimits(names, tuple(map(tuple, members)), low, high))
    weights, _ = apply(limits, target)
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert (weights >= lower - 1e-12).all()
    assert (weights <= upper + 1e-12).all()
    for part, least, most in zip(members, low, high, strict=True):
        assert least - 1e-9 <= weights[part].sum() <= most + 1e-9
        # domains of a group that no bound of their own limits have the ratios of the target
        is_free = (weights[part] > lower[part] * (1 + 1e-6)) & (
            weights[part] < upper[part] * (1 - 1e-6)
        )
        factors = (weights[part] / target[part])[is_free]
        assert factors.size == 0 or factors.max() == pytest.approx(factors.min(), rel=1e-6)
    # convexity: the closest point is no farther than any point between it and an allowed one
    for fraction in (1e-3, 0.1, 1.0):
        other = weights + fraction * (inside - weights)
        assert kl_divergence(other, target) >= kl_divergence(weights, target) - 1e-9


@settings(max_examples=100)
@given(problem=problems(), limit=st.floats(1e-3, 0.5))
def test_a_trust_region_keeps_the_groups(problem, limit):
    target, inside, _, _, members, low, high = problem
    names = tuple(f"g{number}" for number in range(len(members)))
    limits = [TrustRegion(max_total_variation=limit)]
    if members:
        limits.append(GroupLimits(names, tuple(map(tuple, members)), low, high))
    weights, _ = apply(limits, target, previous=inside)
    for part, least, most in zip(members, low, high, strict=True):
        assert least - 1e-9 <= weights[part].sum() <= most + 1e-9
    assert total_variation(inside, weights) <= limit * (1 + 1e-6)


def test_limits_that_contradict_each_other_are_refused_with_the_sums():
    with pytest.raises(ValueError, match=r"positive weight to 0\.7; .* at least 1"):
        apply([GroupLimits(("x", "y"), ((0,), (1, 2)), (0, 0), (0.3, 0.4))], [1, 1, 1])
    with pytest.raises(ValueError, match=r"lower bounds sum to 1\.2"):
        apply([GroupLimits(("x", "y"), ((0,), (1, 2)), (0.6, 0.6), (1, 1))], [1, 1, 1])


def test_an_epoch_cap_wins_over_the_minimum_of_a_group():
    cap = EpochCap(1.0, (10, 1000), 100)
    weights, _ = apply([code(0, minimum=0.5), cap], [1, 1], consumed=[10, 10])
    np.testing.assert_allclose(weights, [0.0, 1.0], atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((("a",), ((0, 0),), (0,), (1,)), "domain 0 is named twice"),
        ((("a", "b"), ((0,), (1, 0)), (0, 0), (1, 1)), "domain 0 is named twice"),
        ((("a",), ((0,),), (0.5,), (0.2,)), r"a has the minimum 0\.5 and the maximum 0\.2"),
        ((("a",), ((),), (0,), (1,)), "a group needs a name, domains and two bounds"),
        ((("a",), ((0,),), (0,), (2,)), r"group_limits: maximum must be in \[0, 1\]"),
    ],
)
def test_groups_that_mean_nothing_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GroupLimits(*arguments)


def test_a_controller_refuses_a_domain_that_it_does_not_have_and_replay_makes_the_same_limits():
    def make(limits):
        return MixtureController(("a", "b"), "static", MixtureSchedule(1, 2), [limits])

    with pytest.raises(ValueError, match="no domain 2, the run has 2"):
        make(code(2, maximum=0.5))
    controller = make(code(0, maximum=0.25))
    assert controller.weights.tolist() == pytest.approx([0.25, 0.75])
    assert controller_from_description(controller.describe()).constraints == controller.constraints
