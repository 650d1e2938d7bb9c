import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from odm import Ceiling, EpochCap, MixtureController, MixtureSchedule, make_mixer
from odm.replay import RunLog, replay
from odm.static_weights import temperature_shares, unimax_shares

sizes = st.lists(st.integers(1, 10**6), min_size=1, max_size=12)


def test_temperature_one_is_proportional_and_five_is_the_fifth_root():
    assert temperature_shares([1, 3], 1) == pytest.approx([0.25, 0.75])
    assert temperature_shares([1, 32], 5) == pytest.approx([1 / 3, 2 / 3])
    assert temperature_shares([0, 10, 10], 3) == pytest.approx([0, 0.5, 0.5])


@pytest.mark.parametrize("temperature", [1e-3, 1e-9, 1e9])
def test_extreme_temperatures_give_shares(temperature):
    shares = temperature_shares([1, 10**12, 10**15], temperature)
    assert sum(shares) == pytest.approx(1, abs=1e-12)
    assert shares == sorted(shares)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(([1, 2], 0), "above 0, got 0"), (([0, 0], 1), "not all 0"), (([-1, 2], 1), "at least 0")],
)
def test_values_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        temperature_shares(*arguments)


def test_unimax_by_hand():
    # two epochs of 10 and of 30 are all that they may give; the third has what is left of 200
    assert unimax_shares([30, 1000, 10], 2, total_samples=200) == pytest.approx([0.3, 0.6, 0.1])
    assert unimax_shares([1000, 1000], 1, total_samples=10) == [0.5, 0.5]


@settings(max_examples=200)
@given(sizes=sizes, epochs=st.floats(0.1, 20), used=st.floats(0.01, 1.0))
def test_unimax_is_as_equal_as_the_epochs_allow(sizes, epochs, used):
    total = used * epochs * sum(sizes)
    shares = np.array(unimax_shares(sizes, epochs, total_samples=total))
    caps = epochs * np.array(sizes) / total
    assert shares.sum() == pytest.approx(1, abs=1e-12)
    assert (shares <= caps * (1 + 1e-9)).all()
    # a domain below its cap has as much as any other domain has
    below = shares < caps * (1 - 1e-6)
    assert not below.any() or shares[below].min() >= shares.max() * (1 - 1e-6)


def test_unimax_refuses_a_run_that_needs_more_epochs_and_names_how_many():
    with pytest.raises(ValueError, match=r"2 epochs .* 80 samples, .* 100; .* at least 2\.5"):
        unimax_shares([10, 30], 2, total_samples=100)


def scheduled(points, interpolation="constant", constraints=(), **settings):
    mixer = make_mixer("schedule", points=points, interpolation=interpolation)
    schedule = MixtureSchedule(3, len(points[0][1]))
    names = ["a", "b", "c"][: schedule.num_domains]
    return MixtureController(names, mixer, schedule, constraints, **settings)


def weights_of(controller, steps, losses=(2.0, 3.0)):
    found = []
    for step in steps:
        found.append(controller.weights.tolist())
        controller.draw(step, 8)
        controller.observe(step, losses)
    return found


def test_a_constant_schedule_changes_after_the_steps_of_its_points():
    weights = weights_of(scheduled([(0, (1, 1)), (2, (3, 1)), (3.5, (0, 5))]), range(1, 7))
    assert weights == [[0.5, 0.5]] * 2 + [[0.75, 0.25]] * 2 + [[0, 1]] * 2


def test_a_linear_schedule_moves_the_shares_on_a_line():
    weights = weights_of(scheduled([(0, (1, 1)), (4, (30, 10))], "linear"), range(1, 7))
    shares = [0.5, 0.5625, 0.625, 0.6875, 0.75, 0.75]
    np.testing.assert_allclose([w[0] for w in weights], shares, rtol=0, atol=1e-15)


@settings(max_examples=40)
@given(
    stop=st.integers(0, 20),
    interpolation=st.sampled_from(["constant", "linear"]),
    ceiling=st.floats(0.5, 1.0),
    seed=st.integers(0, 999),
)
def test_a_schedule_resumes_exactly_also_under_limits(stop, interpolation, ceiling, seed):
    rng = np.random.default_rng(seed)
    steps = [0, *np.sort(rng.choice(np.arange(1, 20), size=3, replace=False)).tolist()]
    points = [(at, tuple(rng.random(3) + 0.01)) for at in steps]

    def make():
        cap = EpochCap(1.0, (60, 80, 100), 160)
        return scheduled(points, interpolation, [Ceiling(ceiling), cap])

    whole, first, second = make(), make(), make()
    losses = (2.0, 3.0, 4.0)
    expected = weights_of(whole, range(1, 21), losses)
    found = weights_of(first, range(1, stop + 1), losses)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert found + weights_of(second, range(stop + 1, 21), losses) == expected
    assert second.cursors.tolist() == whole.cursors.tolist()


def test_another_schedule_applies_from_the_resumed_step_on(caplog):
    before = scheduled([(0, (1, 1))])
    weights_of(before, range(1, 4))
    after = scheduled([(0, (1, 1)), (2, (3, 1)), (4, (0, 1))])
    after.load_state_dict(before.state_dict())
    assert "options was" in caplog.text
    assert weights_of(after, range(4, 6)) == [[0.75, 0.25], [0, 1]]


def test_the_same_schedule_is_no_change_of_options(caplog):
    before = scheduled([(0, (1, 1)), (2, (3, 1))], "linear")
    after = scheduled([(0, (1, 1)), (2, (3, 1))], "linear")
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert caplog.text == ""


def test_a_schedule_is_replayed_from_the_log_alone():
    controller = scheduled([(0, (1, 1)), (2, (3, 1)), (5, (1, 9))], "linear")
    mixture = json.loads(json.dumps(controller.describe()))
    lines = {
        step: {
            "iteration": step,
            "weights": dict(zip("ab", weights, strict=True)),
            "losses": {"a": 2.0, "b": 3.0},
        }
        for step, weights in enumerate(weights_of(controller, range(1, 9)), start=1)
    }
    assert replay(RunLog(mixture, lines)).largest_difference == 0.0
    with pytest.raises(ValueError, match="iteration 3 changed the weights but is not in the log"):
        replay(RunLog(mixture, {step: line for step, line in lines.items() if step != 3}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": [(1, (1, 1))]}, "ascending steps from 0 on"),
        ({"points": [(0, (1, 1)), (0, (1, 1))]}, "ascending steps from 0 on"),
        ({"points": [(0, (1, 1)), (3, (1,))]}, "weights at step 3: expected 2 weights"),
        ({"points": [(0, (0, 0))]}, "all weights are 0"),
        ({"interpolation": "cubic"}, "interpolation must be one of constant, linear"),
    ],
)
def test_schedules_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_mixer("schedule", **options)


def test_a_schedule_for_another_number_of_domains_is_refused():
    mixer = make_mixer("schedule", points=[(0, (1, 1))])
    with pytest.raises(ValueError, match="schedule: points: expected 3 weights"):
        mixer.init(["a", "b", "c"], [1, 1, 1])
