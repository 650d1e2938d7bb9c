"""Adaptive data optimization: domains in proportion to how fast their power laws still fall."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..json_data import MAX_INTEGER, Check, SchemaError, integer, is_number, list_of, number
from ..observation import Observation
from ..power_laws import EXPONENTS, fit_power_laws
from ..simplex import FloatArray, normalize
from ..wording import shown
from .base import MAX_REWARD, Mixer, State, register

_FIRST_WIDTH = 10
"""Steps of a point of the curve at first."""
_FIRST_WIDTH_HELD_OUT = 1
"""Measurements of a point at first: they are rare, and each is a mean over many windows."""
_MAX_POINTS = 32
"""When a curve has so many points, each two neighbours become one of twice the width."""
_MIN_POINTS = 8
"""Points of a domain without which no law is fitted to it."""
_LARGEST_UNIFORM_SHARE = 0.25
"""The smallest probability is at most this share of that of uniform weights."""
_LARGEST_LOG_STEP = 44.0
"""Logarithm of the largest step that a file can hold."""
_MAX_LOSS = 1e300
_ROUNDING = 1e-9


@register("ado")
@dataclass(frozen=True)
class Ado(Mixer):
    """Shares follow prior x credit x learning speed, where a power law per domain gives the speed.

    To the losses of each domain a law ``L(n) = floor + b n^-a`` is fitted, n counts steps. Then

    - speed ``-dL / dln n = a b n^-a``; the law is that of the last fit, n the present step
    - preference ``rho ~ prior * h^s * speed``, no less than the smallest probability,
      ``h = c h + (1 - c) p`` the recent share of each domain: it gets credit for what fell while it
      was read
    - weights ``p = m rho + (1 - m) average``, ``average`` the mean of all preferences so far, that
      starts at the prior

    The prior is the initial weights. Until there is a first fit (90 steps, or 9 measurements where
    the weights follow held-out losses) the weights are the prior. The losses of every step count,
    also those of the warm-up.

    Source: Jiang et al. 2024, arXiv:2410.11820, and the released code. Different on purpose:

    - The history is kept as 16 to 32 means over equal spans of steps, not step by step, so that the
      state is small. The first span, where the law does not hold, is left out of the fit. A law is
      fitted again when a span ends: every 10 steps at first, every 3 to 6 % of the run later (the
      original: every 1,000 steps, with the losses smoothed by a Savitzky-Golay filter).
    - Least squares of relative errors on a grid of exponents, in closed form (the original: a Huber
      loss of logarithms, L-BFGS from 512 starting points). The exponent is in [0.05, 0.8]; the
      original raises it to 0.05 only when it computes the speed. The floor may be as
      low as 0 (the original: a penalty below 1.65 nats, which is above the loss of some code).
    - A domain without loss in a step adds nothing to its mean (the original repeats the last loss).
      A domain that has too few points for a law gets the mean speed of the others.
    - h follows the probabilities of the draw, as in the paper, not the counts; the credit is h^s,
      as in the paper (one version of the code has ``sqrt(h (1 - h))``).
    - The smallest probability is at most a quarter of uniform weights, or with more than 100
      domains nothing would be left to decide.
    """

    estimate = "learning_speed"

    credit_exponent: float = 0.5
    """Exponent s of the recent share; 0 gives no credit, 1 all of it to the domains read."""
    credit_smoothing: float = 0.9
    """Weight c of the old recent share, in [0, 1)."""
    preference_share: float = 0.1
    """Share m of the present preference in the weights, in (0, 1]; the rest is its mean."""
    min_probability: float = 0.01
    """Smallest preference, in [0, 1)."""

    def __post_init__(self) -> None:
        for name, is_right, must in (
            ("credit_exponent", lambda value: value >= 0, "at least 0"),
            ("credit_smoothing", lambda value: 0 <= value < 1, "in [0, 1)"),
            ("preference_share", lambda value: 0 < value <= 1, "in (0, 1]"),
            ("min_probability", lambda value: 0 <= value < 1, "in [0, 1)"),
        ):
            value = getattr(self, name)
            if not is_number(value) or not is_right(value):
                raise ValueError(f"{self.name}: {name} must be {must}, got {shown(value)}")

    def _init(self, weights: FloatArray) -> State:
        prior, zeros = normalize(weights).tolist(), [0.0] * weights.size
        return {
            "prior": prior,
            "credit": prior,
            "average": prior,
            "last_update": 0,
            "learning_speed": zeros,  # at the step of the last fit
            "pull": zeros,  # prior times learning speed, at this step
            "exponent": zeros,
            "fitted_step": 0,
            "width": _FIRST_WIDTH,
            "log_steps": [],
            "means": [],
            "counts": [],
            "open_steps": 0,
            "open_log_step": 0.0,
            "open_mean": zeros,
            "open_count": zeros,
        }

    def state_fields(self, initial: FloatArray, step: int) -> dict[str, Check]:
        """As in `Mixer`."""
        size = initial.size
        shares = list_of(number(0, 1 + _ROUNDING), size)
        nats = list_of(number(0, MAX_REWARD), size)
        losses = list_of(number(-_MAX_LOSS, _MAX_LOSS), size)
        counts, log_step = list_of(number(0, MAX_INTEGER), size), number(0, _LARGEST_LOG_STEP)
        return {
            "prior": shares,
            "credit": shares,
            "average": shares,
            "last_update": integer(0, step),
            "learning_speed": nats,
            "pull": nats,
            "exponent": list_of(number(0, EXPONENTS[1]), size),
            "fitted_step": integer(0, step),
            "width": integer(min(_FIRST_WIDTH, _FIRST_WIDTH_HELD_OUT)),
            "log_steps": list_of(log_step),
            "means": list_of(losses),
            "counts": list_of(counts),
            "open_steps": integer(0),
            "open_log_step": log_step,
            "open_mean": losses,
            "open_count": counts,
        }

    def proposals(self, state: Mapping[str, Any], initial: FloatArray) -> list[FloatArray]:
        """As in `Mixer`; the weights do not follow from the state, which has no preference."""
        for name in ("prior", "credit", "average"):
            if abs(sum(state[name]) - 1.0) > _ROUNDING:
                raise SchemaError(f"mixer.{name}: must sum to 1, got {sum(state[name]):.12g}")
        points = {len(state[name]) for name in ("log_steps", "means", "counts")}
        if len(points) != 1 or max(points) >= _MAX_POINTS:
            raise SchemaError(
                "mixer.log_steps: must have as many values as means and counts, below "
                f"{_MAX_POINTS}, got {sorted(points)}; the state is damaged"
            )
        return []

    def observe_checked(self, state: State, observation: Observation) -> State:
        """As in `Mixer`: the losses are part of the curves."""
        if not np.count_nonzero(observation.present):
            return state
        return _with_losses(state, observation)

    def _update(self, state: State, observation: Observation) -> tuple[State, FloatArray]:
        state = _with_losses(state, observation)
        step, smoothing = observation.step, self.credit_smoothing
        credit = smoothing * _array(state["credit"]) + (1.0 - smoothing) * observation.weights_used
        average = _array(state["average"])
        away = self._preference(state, credit, step) - average
        # an update stands for all steps since the last one
        passed = step - state["last_update"] if state["last_update"] else 1
        changes = {
            "credit": credit.tolist(),
            "average": (average + min(1.0, passed / (step + 1.0)) * away).tolist(),
            "last_update": step,
        }
        return {**state, **changes}, average + self.preference_share * away

    def _preference(self, state: State, credit: FloatArray, step: int) -> FloatArray:
        """Shares by prior, credit and the learning speed at a step, shape (K,)."""
        if not state["fitted_step"]:
            return _array(state["prior"])
        passed = math.log(step / state["fitted_step"])
        pull = _array(state["pull"]) * np.exp(_array(state["exponent"]) * -passed)
        pull *= credit**self.credit_exponent
        total = pull.sum()
        if not total > 0:  # nothing falls
            return _array(state["prior"])
        lowest = min(self.min_probability, _LARGEST_UNIFORM_SHARE / pull.size)
        return normalize(np.maximum(pull / total, lowest))


def _array(values: list[Any]) -> FloatArray:
    return np.array(values, dtype=np.float64)


def _with_losses(state: State, observation: Observation) -> State:
    """The state with the losses of a step, and with new laws if they complete a point."""
    if observation.held_out is not None and not state["open_steps"] and not state["log_steps"]:
        state = {**state, "width": _FIRST_WIDTH_HELD_OUT}
    steps, log_step = state["open_steps"] + 1, state["open_log_step"]
    count, mean = _array(state["open_count"]) + observation.present, _array(state["open_mean"])
    mean += observation.present / np.maximum(count, 1.0) * (observation.losses - mean)
    changes = {
        "open_steps": steps,
        "open_log_step": log_step + (math.log(observation.step) - log_step) / steps,
        "open_mean": mean.tolist(),
        "open_count": count.tolist(),
    }
    state = {**state, **changes}
    if steps < state["width"]:
        return state
    state = _with_point(state)
    is_enough = len(state["log_steps"]) > _MIN_POINTS
    return _with_laws(state, observation.step) if is_enough else state


def _with_point(state: State) -> State:
    """The state after the end of a span of steps, whose means become a point of the curves."""
    log_steps = [*state["log_steps"], state["open_log_step"]]
    means = [*state["means"], state["open_mean"]]
    counts = [*state["counts"], state["open_count"]]
    width = state["width"]
    if len(log_steps) == _MAX_POINTS:
        log_steps, means, counts = _merged(log_steps, means, counts)
        width *= 2
    zeros = [0.0] * len(state["prior"])
    return {
        **state,
        "width": width,
        "log_steps": log_steps,
        "means": means,
        "counts": counts,
        "open_steps": 0,
        "open_log_step": 0.0,
        "open_mean": zeros,
        "open_count": zeros,
    }


def _merged(
    log_steps: list[float], means: list[list[float]], counts: list[list[float]]
) -> tuple[list[float], list[list[float]], list[list[float]]]:
    """Each two neighbouring points as one."""
    place, mean, count = _array(log_steps), _array(means), _array(counts)
    total = count[::2] + count[1::2]
    share = count[1::2] / np.maximum(total, 1.0)
    joined = mean[::2] + share * (mean[1::2] - mean[::2])
    return (0.5 * (place[::2] + place[1::2])).tolist(), joined.tolist(), total.tolist()


def _with_laws(state: State, step: int) -> State:
    """The state with laws that are fitted to all points but the first."""
    means, counts = _array(state["means"][1:]), _array(state["counts"][1:])
    has_points = ((counts > 0).sum(axis=0) >= _MIN_POINTS) & (means.max(axis=0) > 0)
    if not has_points.any():
        return state
    places = _array(state["log_steps"][1:]) - math.log(step)
    laws = fit_power_laws(places, means[:, has_points], counts[:, has_points])
    speed = np.minimum(laws.exponent * laws.reducible, MAX_REWARD)
    exponent, learning_speed = np.empty((2, has_points.size))
    exponent[~has_points], learning_speed[~has_points] = laws.exponent.mean(), speed.mean()
    exponent[has_points], learning_speed[has_points] = laws.exponent, speed
    changes = {
        "learning_speed": learning_speed.tolist(),
        "pull": (_array(state["prior"]) * learning_speed).tolist(),
        "exponent": exponent.tolist(),
        "fitted_step": step,
    }
    return {**state, **changes}
