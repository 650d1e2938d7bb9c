import json
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from odm import Ceiling, EpochCap, Guard, MixtureController, MixtureSchedule, TrustRegion
from odm.guard import whole_parts
from odm.mixers import Mixer
from odm.schedule import plan_draw
from odm.simplex import normalize


@dataclass(frozen=True)
class Nonsense(Mixer):
    """Weights that jump about, often to 0; they depend on the step alone."""

    name = "nonsense"
    seed: int = 0

    def _init(self, weights):
        return {}

    def _update(self, state, observation):
        rng = np.random.default_rng([self.seed, observation.step])
        weights = rng.random(observation.losses.size) ** 8
        weights[rng.random(weights.size) < 0.3] = 0.0
        return state, normalize(weights + 1e-300)


def flat(step, num_domains):
    """Losses that never fall, so nothing speaks for the mixture; 6 nats apart."""
    return np.linspace(1.0, 7.0, num_domains)


@st.composite
def runs(draw):
    num_domains = draw(st.integers(2, 7))
    run_length = draw(st.sampled_from([1, 1, 2, 4]))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    return {
        "method": draw(st.sampled_from(["smoothed_mean", "exp3", Nonsense(int(rng.integers(99)))])),
        "initial": rng.random(num_domains) ** draw(st.sampled_from([0, 1, 4])) + 1e-3,
        "total_steps": draw(st.integers(1, 60)),
        "batch": run_length * draw(st.integers(1, 12)),
        "run_length": run_length,
        "seed": draw(st.integers(0, 999)),
        "stratified": draw(st.booleans()),
        "decision_point": draw(st.sampled_from([0.05, 0.3, 0.6, 1.0])),
    }


def make(run, constraints=()):
    schedule = MixtureSchedule(run["seed"], len(run["initial"]), stratified=run["stratified"])
    guard = Guard(
        run["total_steps"],
        run["batch"],
        run["run_length"],
        decision_point=run["decision_point"],
    )
    names = [f"d{k}" for k in range(len(run["initial"]))]
    return MixtureController(
        names, run["method"], schedule, [*constraints, guard], initial_weights=run["initial"]
    )


def advance(controller, run, steps, losses=flat):
    """Trains some steps; returns plans and weights."""
    seen = []
    for step in steps:
        draw = controller.draw(step, run["batch"], run["run_length"])
        is_drawn = draw.counts(controller.num_domains) > 0
        means = np.where(is_drawn, losses(step, controller.num_domains), np.nan)
        decision = controller.observe(step, means)
        seen.append(
            (draw.domains.tolist(), draw.positions.tolist(), decision.weights_after.tolist())
        )
    return seen


def again(controller, run, constraints=()):
    """The controller of a resumed run."""
    resumed = make(run, constraints)
    resumed.load_state_dict(json.loads(json.dumps(controller.state_dict())))
    return resumed


@settings(max_examples=150)
@given(run=runs(), stop=st.integers(0, 60))
def test_a_restored_run_ends_with_the_counts_of_the_anchor(run, stop):
    total, stop = run["total_steps"] * run["batch"], min(stop, run["total_steps"])
    share = normalize(run["initial"])
    whole, first = make(run), make(run)
    expected = advance(whole, run, range(1, run["total_steps"] + 1))
    assert whole.last_decision["constraints"]["guard"]["phase"] == "restoring"
    assert np.abs(whole.cursors - share * total).max() < run["run_length"]
    found = advance(first, run, range(1, stop + 1))
    resumed = again(first, run)
    assert found + advance(resumed, run, range(stop + 1, run["total_steps"] + 1)) == expected
    assert resumed.cursors.tolist() == whole.cursors.tolist()


@settings(max_examples=60)
@given(run=runs())
def test_until_the_decision_no_domain_is_read_more_than_the_anchor_reads_it(run):
    run["decision_point"] = 1.0
    quotas = normalize(run["initial"]) * run["total_steps"] * run["batch"]
    controller = make(run)
    for step in range(1, run["total_steps"]):
        advance(controller, run, [step])
        assert (controller.cursors < quotas + run["run_length"]).all()


HETEROGENEOUS = np.array([0.4, 0.35, 0.45, 0.4, 0.0])  # the last one is noise


def noisy_world(step, num_domains):
    rng = np.random.default_rng(step)
    losses = np.array([3.0, 3.1, 2.9, 3.0, 6.0]) - HETEROGENEOUS * np.log(step)
    return losses + 0.02 * rng.standard_normal(5)


def learning_world(step, num_domains):
    rng = np.random.default_rng(step)
    losses = np.array([3.0, 3.0, 3.0, 3.0, 6.0]) - np.array([0.1, 0.1, 0.1, 0.1, 0.6]) * np.log(
        step
    )
    return losses + 0.02 * rng.standard_normal(5)


RUN = {
    "method": "smoothed_mean",
    "initial": np.ones(5),
    "total_steps": 400,
    "batch": 16,
    "run_length": 1,
    "seed": 3,
    "stratified": False,
    "decision_point": 0.6,
}


def test_a_mixture_that_follows_noise_is_given_up_as_soon_as_that_is_certain():
    controller = make(RUN)
    advance(controller, RUN, range(1, 401), noisy_world)
    effect = controller.last_decision["constraints"]["guard"]
    assert effect["phase"] == "restoring"
    assert 40 <= effect["decided_at"] < 240
    assert effect["gain"] + 1.64 * effect["error"] < 0
    assert controller.cursors.tolist() == [1280] * 5


def test_a_mixture_that_helps_is_free_after_the_decision_point():
    controller = make(RUN)
    advance(controller, RUN, range(1, 240), learning_world)
    assert controller.last_decision["constraints"]["guard"]["phase"] == "open"
    advance(controller, RUN, range(240, 401), learning_world)
    effect = controller.last_decision["constraints"]["guard"]
    assert (effect["phase"], effect["decided_at"]) == ("free", 240)
    assert effect["gain"] - 1.64 * effect["error"] > 0
    assert controller.cursors[4] > 1280


def test_the_estimate_is_the_first_order_gain():
    """Slopes 1 and 0, equal losses at the end, counts 3 to 1: G = (ln 1.5 - 0) / 2."""
    run = {**RUN, "initial": np.ones(2), "total_steps": 100, "decision_point": 1.0}
    run["method"] = "static"
    controller = make({**run, "initial": np.array([3.0, 1.0])})
    controller._guard.anchor = np.array([0.5, 0.5])

    def losses(step, num_domains):
        return np.array([2.0 - np.log(step / 100), 2.0])

    for step in range(1, 100):
        controller.observe(step, losses(step, 2))
    controller.schedule.set_cursors([300, 100])
    controller.observe(100, losses(100, 2))
    effect = controller.last_decision["constraints"]["guard"]
    assert effect["gain"] == pytest.approx(0.5 * np.log(1.5), rel=0.02)


def test_the_decision_is_in_the_audit_record_after_the_other_limits():
    controller = make(RUN, [Ceiling(0.5)])
    advance(controller, RUN, [1], noisy_world)
    assert controller.last_decision["constraints"] == {
        "order": ["ceiling", "unspent", "guard"],
        "ceiling": [],
        "unspent": [],
        "guard": {"phase": "open", "gain": None, "error": None, "decided_at": None},
    }


@settings(max_examples=40)
@given(run=runs())
def test_the_anchor_keeps_the_other_limits(run):
    num_domains, total = len(run["initial"]), run["total_steps"] * run["batch"]
    cap = EpochCap(1.0, (max(1, total // num_domains + 1),) * num_domains, total)
    limits = [Ceiling(min(1.0, 1.5 / num_domains)), cap, TrustRegion(max_total_variation=0.1)]
    controller = make(run, limits)
    anchor = controller.weights
    advance(controller, run, range(1, run["total_steps"] + 1))
    assert np.abs(controller.cursors - anchor * total).max() < run["run_length"]
    assert anchor.max() <= 1.5 / num_domains + 1e-9


@pytest.mark.parametrize("losses", [noisy_world, learning_world])
@pytest.mark.parametrize("stop", [30, 150, 239, 240, 241, 300])
def test_plans_that_were_read_ahead_are_made_again_after_a_restart(losses, stop):
    """Step t + 1 is drawn before the losses of step t are known, also around the decision."""

    def ahead(controller, steps):
        plans = []
        for step in steps:
            plans.append(controller.draw(step + 1, 16).domains.tolist())
            controller.observe(step, losses(step, 5))
        return plans

    whole, first, second = make(RUN), make(RUN), make(RUN)
    whole.draw(1, 16)
    expected = ahead(whole, range(1, 400))
    first.draw(1, 16)
    ahead(first, range(1, stop + 1))
    second.load_state_dict(json.loads(json.dumps(first.state_dict(completed_step=stop))))
    assert second.draw(stop + 1, 16).domains.tolist() == expected[stop - 1]
    assert ahead(second, range(stop + 1, 400)) == expected[stop:]


def test_a_run_that_becomes_longer_restores_the_counts_of_the_longer_run():
    run = {**RUN, "total_steps": 40, "decision_point": 0.3}
    before = make(run)
    advance(before, run, range(1, 31))
    longer = {**run, "total_steps": 70}
    after = again(before, longer)
    advance(after, longer, range(31, 71))
    assert after.cursors.tolist() == [70 * 16 / 5] * 5


def test_a_guard_may_be_added_when_a_run_resumes():
    run = {**RUN, "total_steps": 60, "method": Nonsense()}
    plain = MixtureController([f"d{k}" for k in range(5)], Nonsense(), MixtureSchedule(3, 5))
    advance(plain, run, range(1, 6))
    guarded = make(run)
    guarded.load_state_dict(json.loads(json.dumps(plain.state_dict())))
    advance(guarded, run, range(6, 61))
    assert guarded.cursors.tolist() == [192] * 5


@pytest.mark.parametrize(
    ("key", "value"),
    [("phase", "shut"), ("error", -1.0), ("curves", []), ("block", [[0.0]] * 4), ("gain", "x")],
)
def test_a_damaged_state_is_refused_with_the_field(key, value):
    controller = make(RUN)
    advance(controller, RUN, [1])
    state = controller.state_dict()
    state["guard"][key] = value
    with pytest.raises(ValueError, match=rf"state: guard\.{key}"):
        make(RUN).load_state_dict(state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 8), "total_steps must be a whole number of at least 1, got 0"),
        ((10, 8, 3), "samples_per_step 8 must be a multiple of run_length 3"),
        ((10, 8, 1, 0.0), r"decision_point must be in \(0, 1\]"),
        ((10, 8, 1, 0.6, 0.1, -1), "confidence at least 0"),
    ],
)
def test_settings_without_a_meaning_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Guard(*arguments)


def test_a_second_guard_and_another_batch_are_refused():
    with pytest.raises(ValueError, match="2 guards; give one"):
        MixtureController(["a", "b"], "exp3", MixtureSchedule(1, 2), [Guard(5, 8), Guard(5, 8)])
    controller = MixtureController(["a", "b"], "exp3", MixtureSchedule(1, 2), [Guard(5, 8)])
    with pytest.raises(ValueError, match="a draw has 4 samples and run_length 1, the guard was"):
        controller.draw(1, 4)


@settings(max_examples=200)
@given(
    seed=st.integers(0, 10**6),
    num_groups=st.integers(1, 40),
    slack=st.integers(0, 3),
    stratified=st.booleans(),
)
def test_a_draw_never_exceeds_what_is_left_and_moves_no_more_than_it_must(
    seed, num_groups, slack, stratified
):
    rng = np.random.default_rng(seed)
    num_domains, run_length = int(rng.integers(1, 8)), int(rng.integers(1, 4))
    weights = rng.random(num_domains) ** 3 * (rng.random(num_domains) < 0.8) + 1e-12
    left = np.bincount(rng.integers(0, num_domains, num_groups + slack), minlength=num_domains)
    arguments = {
        "weights": weights,
        "cursors": rng.integers(0, 50, num_domains),
        "num_slots": num_groups * run_length,
        "run_length": run_length,
        "stratified": stratified,
    }
    free = plan_draw(seed, 7, **arguments)
    held = plan_draw(seed, 7, **arguments, groups_left=left)
    wanted, counts = (draw.counts(num_domains) // run_length for draw in (free, held))
    assert (counts <= left).all()
    assert (counts >= np.minimum(wanted, left)).all()
    same = int((free.domains == held.domains).sum())
    assert same == run_length * int(np.minimum(wanted, left).sum())
    for domain in range(num_domains):
        positions = held.positions[held.domains == domain]
        start = arguments["cursors"][domain]
        assert positions.tolist() == list(range(start, start + counts[domain] * run_length))


@settings(max_examples=100)
@given(shares=st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=30), total=st.integers(0, 10**9))
def test_whole_parts_sum_to_the_whole_and_differ_by_less_than_one(shares, total):
    parts = whole_parts(np.array(shares), total)
    assert parts.sum() == total
    assert np.abs(parts - normalize(np.array(shares)) * total).max() < 1 + 1e-6
