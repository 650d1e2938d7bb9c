"""Which method learns from which reward: the whole table, and what a refusal says."""

from __future__ import annotations

import numpy as np
import pytest

from odm import HeldOut, MixtureController, MixtureSchedule, Signal, make_mixer
from odm.methods import METHODS
from odm.mixers import ado
from tests.mixers import mixer_for

LEARNS_FROM = {
    "smoothed_mean": ("train", "heldout", "generalization"),
    "odm_paper": ("train", "heldout", "generalization"),
    "exp3": ("train", "heldout", "generalization"),
    "ema": ("train", "heldout"),
    "ado": ("train", "heldout"),
    "doremi": ("train", "heldout"),
    "dynamic_batch_loading": ("train", "heldout"),
    "skill_graph": ("train", "heldout"),
    "learning_curve": ("train", "heldout"),
    # its training losses are what the caller of the library measured
    "naive_validation": ("train", "heldout"),
    "static": ("train",),
    "schedule": ("train",),
}
SOURCES = ("train", "heldout", "generalization")
OPTIONS = {"schedule": {"points": ((0.0, (1.0, 1.0, 1.0)), (20.0, (3.0, 2.0, 1.0)))}}
STEPS = 300


def controller(method: str, source: str) -> MixtureController:
    mixer = mixer_for(method, 3, **OPTIONS.get(method, {}))
    names = ["web", "code", "books"]
    return MixtureController(names, mixer, MixtureSchedule(1, 3), reward=source, total_steps=STEPS)


def test_every_method_has_a_row():
    assert LEARNS_FROM.keys() == METHODS.keys()


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("method", METHODS)
def test_a_reward_that_means_nothing_to_a_method_is_refused_in_one_line(method, source):
    if source in LEARNS_FROM[method]:
        assert controller(method, source).reward.source == source
        return
    with pytest.raises(ValueError, match=f"^reward: {source}: {method} ") as refusal:
        controller(method, source)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("method", "source"),
    [(m, s) for m, sources in LEARNS_FROM.items() for s in sources if METHODS[m].learns],
)
def test_a_reward_that_is_accepted_moves_the_weights(method, source):
    mixture, chance = controller(method, source), np.random.default_rng(3)
    for step in range(1, STEPS + 1):
        fall = np.array([3.0, 1.0, 0.2]) * step**-0.5
        training = np.array([2.0, 1.5, 3.0]) + fall + 0.01 * chance.standard_normal(3)
        measured = HeldOut.from_means(training + np.array([0.3, 0.0, 0.1]), step=step)
        counts = mixture.draw(step, 30).counts(3)
        is_complete = METHODS[method].signal == "held_out"
        signal = Signal.from_means(training, np.maximum(counts, 1 if is_complete else 0) * 16.0)
        mixture.observe(step, signal, held_out=measured if step % 10 == 0 else None)
        assert mixture.weights.sum() == pytest.approx(1.0)
        assert mixture.weights.min() >= 0
    assert np.abs(mixture.weights - 1 / 3).max() > 1e-4


def test_a_reward_that_is_a_difference_says_why_it_is_refused():
    with pytest.raises(ValueError, match="doremi needs losses, not differences of losses"):
        controller("doremi", "generalization")


def first_change(method: str, source: str) -> int:
    """Steps with losses until the weights have left the initial ones."""
    mixture = controller(method, source)
    for step in range(1, STEPS + 1):
        losses = np.array([2.0, 1.5, 3.0]) + np.array([3.0, 1.0, 0.2]) * step**-0.5
        mixture.observe(step, losses, held_out=HeldOut.from_means(losses, step=step))
        if np.abs(mixture.weights - 1 / 3).max() > 1e-9:
            return step
    raise AssertionError("the weights stayed")


@pytest.mark.parametrize(("source", "place"), [("train", 0), ("heldout", 1)])
def test_ado_has_its_first_laws_after_as_many_losses_as_the_table_says(source, place):
    assert first_change("ado", source) == METHODS["ado"].first_estimate[place]


@pytest.mark.parametrize("interval", [1, 3, 80])
def test_learning_curve_follows_the_measurement_that_the_table_says(interval):
    mixer, start = make_mixer("learning_curve"), np.full(3, 1 / 3)
    state = mixer.init(list("abc"), start)
    for step in range(1, 10 * interval + 1):
        losses = np.array([2.0, 1.5, 3.0]) + np.array([3.0, 1.0, 0.2]) * step**-0.5
        measured = HeldOut.from_means(losses, step=step) if step % interval == 0 else None
        state, _ = mixer.update(
            state, step, losses, start, held_out=measured, total_steps=10 * interval
        )
        # slopes of the training losses are forgotten at the first measurement
        if step >= 2 * interval and any(state["slope"]):
            break
    assert step // interval == METHODS["learning_curve"].first_estimate[1]


def test_the_history_of_ado_merges_measurements_as_it_merges_steps():
    mixture = controller("ado", "heldout")
    for step in range(1, 101):
        losses = np.array([2.0, 1.5, 3.0]) + np.array([3.0, 1.0, 0.2]) * step**-0.5
        mixture.observe(step, losses, held_out=HeldOut.from_means(losses, step=step))
    state = mixture.mixer_state()
    assert state["width"] == 4, "100 points of one measurement are 25 of four"
    assert len(state["log_steps"]) == 25
    assert len(state["log_steps"]) < ado._MAX_POINTS
    again = controller("ado", "heldout")
    again.load_state_dict(mixture.state_dict())
    assert again.state_dict() == mixture.state_dict()
