"""Weights by how fast the loss of each domain still falls, times what that is worth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arguments import check_one_per_domain, whole_numbers
from ..curves import (
    LARGEST_SUM,
    CurveFit,
    CurveSums,
    LossPoints,
    block_rows,
    curve_rows,
    middle_of_block,
)
from ..json_data import Check, integer, is_number, list_of, number, optional, plain, probabilities
from ..objective import worth_of_a_nat
from ..observation import Observation
from ..projection import project
from ..simplex import FloatArray, IntArray, check_weights, normalize
from ..wording import shown
from .base import Mixer, State, register

_ANCHOR_SHARE = 0.05
_NUM_BLOCKS = 80
_BLOCK_STEPS, _ANCHOR_STEPS = 25, 100  # where the length of the run is not known
_WINDOW = 1.0
_INERTIA = 0.5
_SMALLEST_ERROR = 1e-5
_SMALLEST_GAIN = 1e-12
_MAX_LOG = 50.0
_LOG_ODDS_OF_NOTHING = math.log(0.3 / 0.7)
_MAX_LOSS = 1e4  # a run with such a loss has diverged


@register("learning_curve")
@dataclass(frozen=True)
class LearningCurve(Mixer):
    """Shares follow the gradient of an objective along fitted learning curves, near an anchor.

    ``w_i ~ u_i (f_i g_i) ^ gamma`` within ``[u_i / rho, rho u_i]``, where u is the anchor, g how
    fast the loss falls (nats per e-fold of steps) and f what a nat is worth to the objective:
    ``f_i = o_i ((1 - beta) + beta P_i / mean P)`` with perplexities P, of which none counts more
    than 2.5 medians, and o the objective's weights. If domains taught only themselves, the gain
    from further samples of one would be in proportion to f g / w. gamma is below 1 because g also
    contains what a domain learns from the others.

    - g is the slope of `CurveSums` with a window of one e-fold: of the training losses of all
      steps, or of held-out losses for domains that have them.
    - Slopes are uncertain: `expected_falls` moves them towards their common value by how much of
      their differences is chance, and to 0 for a domain that more probably teaches nothing.
    - Training losses also fall because text is read again. With a ``repetition_decay`` R, the gain
      of a domain that was read p > 1 times is multiplied by ``exp(-(p - 1) / R)``: what more of it
      is worth compared with new text.
    - If no fall can be told from chance, the target is the anchor.
    - The target is the anchor until 5 % of the run (step 100 if its length is not known). The
      weights move half of the way to the target after every 80th part of the run (25 steps).

    Noise thus gets ``u / rho``, and so does what has been learnt. A domain that begins to fall only
    after much of it was read gets ``u / rho`` until then, and may never begin.

    Source: ours. DynamixSFT (arXiv:2508.12116) reports that its anchor matters; ADO
    (arXiv:2410.11820) also takes slopes from curves that are fitted online, but power laws. The
    worth of repeated text is that of arXiv:2305.16264, which finds an R of about 15.
    docs/mixing.md lists what did not help.
    """

    perplexity_share: float = 0.5
    """beta, in [0, 1]: 0 makes the mean loss small, 1 the mean perplexity."""
    objective_weights: tuple[float, ...] = ()
    """o, one number per domain, at least one above 0; empty counts all domains alike."""
    anchor: str | tuple[float, ...] = "initial"
    """u: ``initial`` (the initial weights), ``uniform``, or one number per domain."""
    max_ratio: float = 3.0
    """rho, in (1, 1000]: a share is between u / rho and rho u."""
    exponent: float = 0.5
    """gamma, in (0, 1]: 0 would keep the anchor, 1 follows the estimates in full."""
    repetition_decay: float | None = None
    """R, above 0, in passes over a domain; None counts repeated text like new text."""
    domain_sizes: tuple[int, ...] = ()
    """Samples per epoch of each domain, for ``repetition_decay``."""

    estimate = "slope"

    def __post_init__(self) -> None:
        self._require("perplexity_share", "in [0, 1]", lambda value: 0 <= value <= 1)
        self._require("max_ratio", "in (1, 1000]", lambda value: 1 < value <= 1000)
        self._require("exponent", "in (0, 1]", lambda value: 0 < value <= 1)
        self._check_repetition()
        for name in ("objective_weights", "anchor"):
            values = getattr(self, name)
            if name != "anchor" or not isinstance(values, str):
                object.__setattr__(self, name, _numbers(f"{self.name}: {name}", values))
        is_word = isinstance(self.anchor, str)
        if not self.anchor or (is_word and self.anchor not in ("initial", "uniform")):
            raise ValueError(
                f"{self.name}: anchor must be initial, uniform or one number per domain, got "
                f"{shown(self.anchor)}"
            )

    def _require(self, name: str, wanted: str, is_good: Any) -> None:
        value = getattr(self, name)
        if not is_number(value) or not is_good(value):
            raise ValueError(f"{self.name}: {name} must be a number {wanted}, got {shown(value)}")
        object.__setattr__(self, name, plain(value))  # numpy's numbers may have fewer digits

    def _check_repetition(self) -> None:
        if self.repetition_decay is not None:
            self._require("repetition_decay", "above 0", lambda value: value > 0)
        sizes = whole_numbers(f"{self.name}: domain_sizes", self.domain_sizes, 1)
        object.__setattr__(self, "domain_sizes", sizes)
        if (self.repetition_decay is None) != (not sizes):
            raise ValueError(
                f"{self.name}: repetition_decay and domain_sizes need each other; give both or none"
            )

    @property
    def depends_on_cursors(self) -> bool:
        """As in `Mixer`."""
        return self.repetition_decay is not None

    def options(self) -> dict[str, Any]:
        """As in `Mixer`; without those of repetition if they are not used."""
        found = super().options()
        if self.repetition_decay is None:
            del found["repetition_decay"], found["domain_sizes"]
        return found

    def _init(self, weights: FloatArray) -> State:
        count = weights.size
        for name in ("objective_weights", "anchor", "domain_sizes"):
            values = getattr(self, name)
            if not isinstance(values, str) and values:
                check_one_per_domain(f"{self.name}: {name}", len(values), count)
        zeros = [0.0] * count
        share = normalize(weights).tolist()
        return {
            "initial": share,
            "weights": list(share),
            "slope": list(zeros),
            "block_start": 1,
            "block": [list(zeros) for _ in LossPoints._fields],
            "sums": CurveSums.empty(count, window=_WINDOW).to_rows(),
            "held_out_step": None,
            "new_points": 0,
        }

    def state_fields(self, initial: FloatArray, step: int) -> dict[str, Check]:
        """As in `Mixer`."""
        count = initial.size
        slopes = list_of(number(-LARGEST_SUM, LARGEST_SUM), count)
        return {
            "initial": probabilities(count),
            "weights": probabilities(count),
            "slope": slopes,
            "block_start": integer(1, step + 1),
            "block": block_rows(count),
            "sums": curve_rows(count),
            "held_out_step": optional(list_of(integer(0, step), count)),
            "new_points": integer(0, step),
        }

    def proposals(self, state: Mapping[str, Any], initial: FloatArray) -> list[FloatArray]:
        """As in `Mixer`."""
        return [np.array(state["weights"])]

    def observe_checked(self, state: State, observation: Observation) -> State:
        """As in `Mixer`: the losses become part of the curves."""
        step, total = observation.step, observation.total_steps
        block, shares = np.array(state["block"], dtype=np.float64), observation.token_shares
        following = dict(state)
        if observation.held_out is not None:
            sums, held_step = self._with_held_out(state, observation)
            following.update(sums=sums.to_rows(), held_out_step=held_step.tolist())
        if following["held_out_step"] is not None:
            by_training = np.array(following["held_out_step"]) == 0
            block, shares = block * by_training, shares * by_training
        losses = np.minimum(np.maximum(observation.losses, -_MAX_LOSS), _MAX_LOSS)
        block = block + np.array(LossPoints.of_step(losses, shares))
        length = _BLOCK_STEPS if total is None else max(1, round(total / _NUM_BLOCKS))
        if step - state["block_start"] + 1 >= length:
            middle = middle_of_block(state["block_start"], step)
            sums, block = self._sums(following).add(middle, LossPoints(*block)), 0.0 * block
            following.update(sums=sums.to_rows(), block_start=step + 1)
            following["new_points"] += 1
        following["block"] = block.tolist()
        return following

    def _update(self, state: State, observation: Observation) -> tuple[State, FloatArray]:
        state = self.observe_checked(state, observation)
        weights = np.array(state["weights"])
        if not state["new_points"]:
            return state, weights
        anchor, total = self._anchor(np.array(state["initial"])), observation.total_steps
        fit = self._sums(state).fit()
        target = anchor
        if observation.step >= (_ANCHOR_STEPS if total is None else _ANCHOR_SHARE * total):
            target = self._target(fit, anchor, worth=self._worth_of_text(observation))
        weights = normalize(_INERTIA * weights + (1.0 - _INERTIA) * target)
        numbers = {"weights": weights.tolist(), "slope": fit.slope.tolist()}
        return {**state, **numbers, "new_points": 0}, weights

    def _with_held_out(self, state: State, observation: Observation) -> tuple[CurveSums, IntArray]:
        """Adds a held-out measurement; a domain's first one replaces its training losses.

        A measurement repeats the losses of all windows but its own part. How many measurements it
        takes to go round follows from the mean age of the losses.

        Returns:
            The curves, and the step of each domain's last measurement, 0 before the first, (K,).
        """
        held_out, step = observation.held_out, observation.step
        assert held_out is not None
        known = np.isfinite(held_out.mean_loss)
        last = np.array(state["held_out_step"] or np.zeros(known.size, dtype=np.int64))
        log_step = np.where(known, held_out.log_step, 0.0)
        age_in_measurements = (step - np.exp(log_step)) / np.maximum(step - last, 1)
        repeats = np.where(last > 0, np.maximum(1.0 + 2.0 * age_in_measurements, 1.0), 1.0)
        losses = np.minimum(np.maximum(held_out.mean_loss, -_MAX_LOSS), _MAX_LOSS)
        points = LossPoints.of_step(losses, known * 1.0)
        sums = self._sums(state).forget(known & (last == 0))
        return sums.add(log_step, points, repeats=repeats), np.where(known, step, last)

    def _sums(self, state: State) -> CurveSums:
        return CurveSums.from_rows(state["sums"], window=_WINDOW)

    def _anchor(self, initial: FloatArray) -> FloatArray:
        if self.anchor == "initial":
            return initial
        if self.anchor == "uniform":
            return np.full(initial.size, 1.0 / initial.size)
        return normalize(np.array(self.anchor))

    def _worth_of_text(self, observation: Observation) -> FloatArray | float:
        """What the next samples of each domain are worth compared with new text, shape (K,)."""
        if self.repetition_decay is None:
            return 1.0
        if observation.samples_read is None:
            raise ValueError(f"{self.name}: repetition_decay needs samples_read")
        unread = observation.present & (observation.samples_read == 0)
        if unread.any():
            raise ValueError(
                f"{self.name}: domain {int(unread.argmax())} has a loss at step "
                f"{observation.step}, and samples_read says that no sample of it was read; draw "
                "the step, or use adopt_draw"
            )
        passes = observation.samples_read / np.array(self.domain_sizes)
        with np.errstate(over="ignore"):  # then it is worth nothing
            return np.exp(-np.maximum(passes - 1.0, 0.0) / self.repetition_decay)

    def _target(
        self, fit: CurveFit, anchor: FloatArray, *, worth: FloatArray | float
    ) -> FloatArray:
        """The weights that the curves ask for, within ``max_ratio`` of the anchor."""
        fall = expected_falls(-fit.slope, np.maximum(fit.slope_error, _SMALLEST_ERROR))
        if fall is None:
            return anchor
        gain = (
            fall
            * worth
            * worth_of_a_nat(
                fit.mean, perplexity_share=self.perplexity_share, weights=self.objective_weights
            )
        )
        if not gain.max() > 0:
            return anchor
        score = anchor * np.maximum(gain / gain.max(), _SMALLEST_GAIN) ** self.exponent
        return project(normalize(score), anchor / self.max_ratio, anchor * self.max_ratio)


def expected_falls(falls: FloatArray, errors: FloatArray) -> FloatArray | None:
    """What the slopes of all domains together say about each of them (empirical Bayes).

    A domain teaches nothing with probability 0.3 before its slope is seen; otherwise its slope is
    drawn around a common value with a variance between domains, estimated by the method of moments
    (DerSimonian and Laird, 1986) less two standard deviations of what chance alone would give. So
    slopes that differ by chance alone become equal. A slope that is small becomes 0 as soon as it
    is more probably one of a domain that teaches nothing.

    Args:
        falls: Estimated falls of the loss, shape (K,).
        errors: Their standard errors, above 0, shape (K,); infinite for an unknown fall.

    Returns:
        Falls, 0 or more, shape (K,); None where the common value is not positive by two of its
        standard errors.
    """
    precision = 1.0 / errors**2
    total = precision.sum()
    if not total > 0:
        return None
    mean = (precision * falls).sum() / total
    freedom = np.count_nonzero(precision) - 1
    by_chance = freedom + 2.0 * math.sqrt(2.0 * freedom)
    scatter = (precision * (falls - mean) ** 2).sum() - by_chance
    scale = total - (precision**2).sum() / total
    between = max(scatter / scale, 0.0) if scale > 0 else 0.0
    spread = 1.0 + between * precision
    weights = precision / spread
    common = (weights * falls).sum() / weights.sum()
    if common <= 2.0 * math.sqrt((weights / spread).sum()) / weights.sum():
        return None
    shrunk = np.maximum((between * precision * falls + common) / spread, 0.0)
    log_odds = 0.5 * precision * ((falls - common) ** 2 / spread - falls**2) + 0.5 * np.log(spread)
    log_odds = np.where(falls < common, log_odds + _LOG_ODDS_OF_NOTHING, -np.inf)
    return shrunk * np.minimum(1.0, 2.0 / (1.0 + np.exp(np.minimum(log_odds, _MAX_LOG))))


def _numbers(where: str, values: Any) -> tuple[float, ...]:
    """Checks numbers that are 0 or more, not all 0; an empty list stays empty."""
    values = values.tolist() if isinstance(values, np.ndarray) else values
    if not isinstance(values, (list, tuple)) or not all(map(is_number, values)):
        raise ValueError(f"{where} must be one finite number per domain, got {shown(values)}")
    if not values:
        return ()
    return tuple(check_weights(values, len(values), where=where).tolist())
