"""Every option of every method, with values of wrong types and sizes: one line or a sound run."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from odm import HeldOut, MixtureController, MixtureSchedule, make_mixer
from odm.methods import METHODS
from tests.mixers import mixer_for
from tests.no_warnings import no_warnings

POINTS = ((0.0, (1.0, 1.0, 1.0)), (20.0, (3.0, 2.0, 1.0)))
LISTS = [
    [],
    [1],
    [1, 2, 3],
    [None, 1, 1],
    ["a", 1, 1],
    [math.nan, 1, 1],
    [[1], 2, 3],
    [10**400] * 3,
]
TABLES = [
    [[]],
    [[0]],
    [[0, 1]],
    [[0, [1, 1]]],
    [[0, "abc"]],
    [[0, [1, 2, None]]],
    [[0, [1e308] * 3]],
]
ODD = [
    *(None, True, "abc", "", {}, {"a": 1}, {"a": 1, "b": 2, "c": 3}, object(), b"abc"),
    *(math.nan, math.inf, -1, 0, 1, 0.5, 2, 1e308, 1e-320, 10**400, 10**5000, 1j),
    *(np.array([1.0, 2.0, 3.0]), np.float64(0.5), np.array(0.5)),
    *LISTS,
    *TABLES,
    *([[0, [1, 2, 3]], [1, [1, 2, 3]]], [["a", [1, 2, 3]]], [[0, [1, 2, 3]]] * 2, [[1, 2, 3]] * 3),
]
CASES = [
    (method, field.name)
    for method in METHODS
    for field in dataclasses.fields(mixer_for(method, 3))  # type: ignore[arg-type]
]


def run(mixer) -> None:
    """Some steps, with held-out losses where the method learns from them; options return."""
    method = METHODS[mixer.name]
    reward = "heldout" if method.signal == "held_out" else "train"
    mixture = MixtureController(
        ["a", "b", "c"], mixer, MixtureSchedule(1, 3), reward=reward, total_steps=120
    )
    for step in range(1, 121):
        losses = np.array([2.0, 1.5, 3.0]) + np.array([3.0, 1.0, 0.2]) * step**-0.5
        mixture.observe(step, losses, held_out=HeldOut.from_means(losses, step=step))
        assert mixture.weights.sum() == pytest.approx(1.0)
    again = make_mixer(mixer.name, **mixer.options())
    assert again.options() == mixer.options()


def problem_of(method: str, option: str, value: object) -> str | None:
    with no_warnings():
        try:
            run(mixer_for(method, 3, **{option: value}))
        except ValueError as error:
            return str(error)
    return None


@pytest.mark.parametrize(("method", "option"), CASES)
def test_an_odd_value_of_an_option_is_one_line_or_a_sound_run(method, option):
    for value in ODD:
        problem = problem_of(method, option, value)
        assert problem is None or (method in problem and "\n" not in problem), problem
        assert problem is None or len(problem) < 500
