"""What a caller of the library can pass wrongly: each gives one short line that names it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from odm import (
    Ceiling,
    EpochCap,
    Floor,
    GroupLimits,
    Guard,
    HeldOut,
    HeldOutRecord,
    MixtureController,
    MixtureSchedule,
    Reward,
    Signal,
    make_mixer,
    sample_order,
)
from tests.no_warnings import no_warnings

DOMAINS = ["a", "b", "c"]
MANY = [f"domain_{number}" for number in range(10_000)]


def controller(domains=DOMAINS, mixer="smoothed_mean", limits=(), **options):
    schedule = MixtureSchedule(7, len(domains))
    return MixtureController(domains, mixer, schedule, limits, **options)


def refused(make) -> str:
    """The message of the error; it is one line of bounded length."""
    with pytest.raises(ValueError, match=r".") as caught:
        make()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


@pytest.mark.parametrize("value", ["10", None, 1.5, math.nan, True, [1], 10**400, b"1", {}])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("warmup_steps", lambda value: controller(warmup_steps=value)),
        ("update_frequency", lambda value: controller(update_frequency=value)),
        ("seed", lambda value: MixtureSchedule(value, 3)),
        ("num_domains", lambda value: MixtureSchedule(7, value)),
        ("draw: step", lambda value: controller().draw(value, 4)),
        ("num_slots", lambda value: controller().draw(1, value)),
        ("run_length", lambda value: controller().draw(1, 4, value)),
        ("observe: step", lambda value: controller().observe(value, [1, 2, 3])),
        ("held_out: step", lambda value: HeldOut.from_means([1, 2, 3], step=value)),
        ("num_parts", lambda value: HeldOutRecord([8, 8], value)),
        ("num_windows[1]", lambda value: HeldOutRecord([8, value], 2)),
        ("guard: total_steps", lambda value: Guard(value, 4)),
        ("total_samples", lambda value: EpochCap(4, (10, 20, 30), value)),
        ("domain_sizes[1]", lambda value: EpochCap(4, (10, value, 30), 5)),
        ("members[1]", lambda value: GroupLimits(("g",), ((0, value),), (0,), (0.3,))),
        ("seed", lambda value: sample_order(value, "a", 0, 5)),
        ("epoch of 'a'", lambda value: sample_order(7, "a", value, 5)),
        ("size of 'a'", lambda value: sample_order(7, "a", 0, value)),
    ],
)
def test_what_is_not_a_whole_number_is_refused_by_name(name, make, value):
    assert f"{name} must be a whole number" in refused(lambda: make(value))


def test_whole_numbers_of_numpy_and_whole_floats_are_accepted():
    made = controller(warmup_steps=np.int64(2), update_frequency=3.0, total_steps=np.float64(9))
    assert (made.warmup_steps, made.update_frequency, made.total_steps) == (2, 3, 9)
    assert made.draw(np.int32(1), np.int64(4)).domains.tolist() == [2, 1, 1, 0]


@pytest.mark.parametrize("size", [5, 5000])
def test_a_position_of_numpy_reads_the_same_sample(size):
    order = sample_order(7, "a", 0, size)
    for kind in (np.int64, np.int32, np.uint64, np.uint8):
        assert order[kind(3)] == order[3]


@pytest.mark.parametrize("position", [0.5, "1", None, [0, 1], slice(0, 2), np.array([0.5])])
@pytest.mark.parametrize("size", [5, 5000])
def test_a_position_that_is_no_integer_is_refused(position, size):
    order = sample_order(7, "a", 0, size)
    assert "position must be a whole number" in refused(lambda: order[position])


@pytest.mark.parametrize(
    "values", ["abc", ["a", 1, 1], {"a": 1, "b": 1, "c": 1}, [1, [2], 3], [1j, 1, 1], [10**400] * 3]
)
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("initial_weights", lambda values: controller(initial_weights=values)),
        ("losses at step 1", lambda values: controller().observe(1, values)),
        ("mean_loss", lambda values: Signal.from_means(values, [1, 1, 1])),
        ("token_count", lambda values: Signal.from_means([1, 1, 1], values)),
        ("sums and counts", lambda values: Signal(values, values, values, values)),
        ("held_out: mean_loss", lambda values: HeldOut.from_means(values, step=1)),
        ("max_epochs", lambda values: EpochCap(values, (10, 20, 30), 5)),
        ("guard: objective_weights", lambda values: Guard(10, 4, objective_weights=values)),
    ],
)
def test_what_is_not_an_array_of_numbers_is_refused_by_name(name, make, values):
    message = refused(lambda: make(values))
    assert name in message or "token_count must have shape" in message


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("mixer", lambda: controller(mixer=None)),
        ("schedule", lambda: MixtureController(DOMAINS, "exp3", None)),
        ("reward", lambda: controller(reward=None)),
        ("constraints", lambda: controller(limits=Floor(0.1))),
        ("constraints: each", lambda: controller(limits=[Floor])),
        ("constraints: each", lambda: controller(limits=["floor"])),
        ("stratified", lambda: MixtureSchedule(7, 3, stratified="false")),
        ("domain", lambda: sample_order(7, 3, 0, 5)),
        ("what is merged", lambda: Signal.from_means([1.0], [1]).merge([1])),
        ("names", lambda: GroupLimits("g", ((0,),), (0,), (0.3,))),
        ("minimum", lambda: GroupLimits(("g",), ((0,),), 0, (0.3,))),
    ],
)
def test_an_argument_of_another_kind_is_refused_by_name(name, make):
    assert f"{name} must be " in refused(make)


@pytest.mark.parametrize("domains", [None, 5, "abc", b"abc", {"a", "b"}, [1, 2], ["a", ""]])
def test_domains_that_are_not_a_list_of_names_are_refused(domains):
    make = lambda: MixtureController(domains, "exp3", MixtureSchedule(7, 2))  # noqa: E731
    assert "domains" in refused(make)


def test_a_name_that_could_not_be_saved_is_refused():
    assert "valid Unicode, got 'b\\udcff'" in refused(lambda: controller(["a", "b\udcff"]))


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_step_that_has_ended_is_neither_observed_nor_drawn_again(step):
    mixture = controller()
    mixture.draw(3, 4)
    mixture.observe(3, [1.0, 2.0, 3.0])
    weights = mixture.weights
    assert f"step {step} comes after step 3" in refused(lambda: mixture.observe(step, [1, 2, 3]))
    assert f"step {step} comes after step 3" in refused(lambda: mixture.draw(step, 4))
    assert mixture.weights.tolist() == weights.tolist()
    assert mixture.cursors.sum() == 4


def test_a_loaded_state_does_not_begin_again_at_step_1():
    first = controller()
    first.draw(1, 4)
    first.observe(1, [1.0, 2.0, 3.0])
    second = controller()
    second.load_state_dict(first.state_dict())
    assert "step 1 comes after step 1" in refused(lambda: second.draw(1, 4))
    assert second.draw(2, 4).num_slots == 4


@pytest.mark.parametrize("held_out", [[1, 2, 3], HeldOut.from_means([1.0, 2.0], step=1), "x"])
def test_a_measurement_of_other_domains_or_of_another_kind_is_refused(held_out):
    mixture = controller(reward=Reward("heldout"))
    assert "held_out at step 1" in refused(
        lambda: mixture.observe(1, [1.0, 2.0, 3.0], held_out=held_out)
    )


@pytest.mark.parametrize("tokens", [[-1.0, 1.0], [math.nan, 1.0], [math.inf, 1.0]])
def test_a_held_out_count_that_could_not_be_loaded_again_is_refused(tokens):
    record = HeldOutRecord([1, 1])
    assert "token_count must be finite and >= 0" in refused(
        lambda: record.update(1, [1.0, 1.0], tokens)
    )
    assert record.state_dict()["visits"] == 0


@pytest.mark.parametrize("weights", [(-1, 1, 1), (0, 0, 0), (math.nan, 1, 1)])
def test_a_guard_refuses_weights_of_its_objective_that_are_none(weights):
    assert "objective_weights" in refused(lambda: Guard(10, 8, objective_weights=weights))


def test_groups_are_named_and_their_names_differ():
    assert "list is empty" in refused(lambda: GroupLimits((), (), (), ()))
    two = lambda: GroupLimits(("g", "g"), ((0,), (1,)), (0, 0), (0.3, 0.3))  # noqa: E731
    assert "'g' is named twice" in refused(two)


@pytest.mark.parametrize(
    "make",
    [
        lambda: controller(MANY, initial_weights=[1.0] * 9_999 + [-1.0]),
        lambda: controller(MANY, initial_weights=[1e308] * 10_000),
        lambda: controller(MANY, limits=[Floor([0.1] * 9_999 + [-1.0])]),
        lambda: controller(MANY, limits=[Ceiling([2.0] * 10_000)]),
        lambda: Signal.from_means([1.0] * 10_000, [1] * 9_999 + [-1]),
        lambda: MixtureSchedule(7, 10_000).set_cursors([0] * 9_999 + [-1]),
        lambda: MixtureSchedule(7, 10_000).draw(1, [1.0] * 9_999 + [-1.0], 4),
        lambda: controller(MANY).load_state_dict(controller().state_dict()),
        lambda: controller().load_state_dict(controller(MANY).state_dict()),
        lambda: controller(MANY).load_state_dict(controller(MANY[::-1]).state_dict()),
        lambda: EpochCap([0.001] * 10_000, [1] * 10_000, 50),
        lambda: HeldOut.from_domains({}, MANY),
    ],
)
def test_a_message_about_ten_thousand_domains_is_one_short_line(make):
    refused(make)


def test_the_wrong_one_of_many_weights_is_named():
    message = refused(lambda: controller(MANY, initial_weights=[1.0] * 7_000 + [-2.0] * 3_000))
    assert "-2.0 at place 7000 (3000 of 10000 are wrong)" in message


@pytest.mark.parametrize("value", ["x", [1], math.nan, 10**400, 0, -1, 2.5, True])
def test_a_mixer_refuses_a_length_that_is_none(value):
    mixer = make_mixer("learning_curve")
    state = mixer.init(["a", "b", "c"], [1, 1, 1])
    message = refused(
        lambda: mixer.update(state, 1, [1, 2, 3], [1, 1, 1], total_steps=value),
    )
    assert "learning_curve: total_steps must be a whole number" in message


def test_a_mixer_refuses_held_out_losses_of_another_kind():
    mixer = make_mixer("learning_curve")
    state = mixer.init(["a", "b", "c"], [1, 1, 1])
    for wrong in ("x", HeldOut.from_means([1.0, 2.0], step=1)):
        message = refused(
            lambda wrong=wrong: mixer.update(state, 1, [1, 2, 3], [1, 1, 1], held_out=wrong),
        )
        assert "learning_curve: held_out at step 1" in message


def test_losses_whose_sum_overflows_print_no_warning():
    with no_warnings():
        signal = Signal.from_means([1e308], [16])
        signal.merge(signal)
