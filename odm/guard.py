"""A guard for any mixer: a run whose mixture does not help ends with the counts of an anchor.

Until the decision point no domain is read more often than the anchor would read it in the whole
run, so the run can still end with exactly the anchor's counts. At each look the gain over the
anchor so far is estimated to first order, from the slopes of the learning curves::

    G = weighted mean over domains of  f_i g_i ln(n_i / (u_i n))

with the slope g_i (nats per e-fold of steps, positive while the loss falls), the samples n_i of n,
the anchor's shares u_i, and the gradient f_i = 1 - b + b P_i / mean P of the objective, a mix of
mean loss and mean perplexity. If G is below zero by more than its error allows, or is not above
zero by more than its error at the decision point, the rest of the run restores the anchor: domain i
is drawn with the weight (u_i N - n_i) / (N - n). Quotas of whole samples in each draw make the
final counts exact.

The order of the samples differs from a run of the anchor; the totals do not. Restored counts are a
promise about what was read, not about the loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from .arguments import check_one_per_domain, number_array, whole_number
from .constraints import Constraint, ConstraintContext, apply_constraints
from .curves import CurveSums, LossPoints, block_rows, curve_rows, middle_of_block
from .json_data import Check, fields, integer, is_number, number, one_of, optional, plain
from .objective import relative_weights, worth_of_a_nat
from .simplex import FloatArray, IntArray, check_weights, normalize
from .wording import counted, shown

_BLOCKS = 200
"""Points of a learning curve in a whole run."""
_WINDOW = 1.0
"""Length of the window of the curves in ln(step)."""
_LARGEST_LOSS = 1e4
"""Losses count as this many nats at most; a run with such losses has diverged."""
_NOTHING = 1e-9
"""A gain in nats that is only rounding."""


@dataclass(frozen=True)
class Guard(Constraint):
    """Settings of the guard; give it to the controller as a constraint, once.

    It replaces all other limits while it restores the anchor, which itself respects them.
    """

    name: ClassVar[str] = "guard"
    depends_on_cursors: ClassVar[bool] = True
    total_steps: int
    """Steps of the whole run."""
    samples_per_step: int
    """Samples of a global batch."""
    run_length: int = 1
    """Consecutive samples that share a domain, as in ``MixtureController.draw``; the final counts
    are the anchor's to less than this number."""
    decision_point: float = 0.6
    """Share of the run, in (0, 1], after which the mixer is free or the anchor is restored."""
    first_look: float = 0.1
    """Share of the run before which nothing is decided, since slopes are not known yet."""
    confidence: float = 1.64
    """Standard errors by which the gain must differ from zero, at least 0."""
    perplexity_share: float = 0.5
    """b above: 0 looks at the mean loss only, 1 at the mean perplexity only."""
    objective_weights: tuple[float, ...] = ()
    """What each domain counts in both means; empty if all count alike."""

    def __post_init__(self) -> None:
        given = number_array("guard: objective_weights", self.objective_weights)
        if given.size:
            given = check_weights(given, given.size, where="guard: objective_weights")
        object.__setattr__(self, "objective_weights", tuple(given.tolist()))
        for key in ("total_steps", "samples_per_step", "run_length"):
            object.__setattr__(self, key, whole_number(f"guard: {key}", getattr(self, key), 1))
        if self.samples_per_step % self.run_length:
            raise ValueError(
                f"guard: samples_per_step {self.samples_per_step} must be a multiple of run_length "
                f"{self.run_length}"
            )
        shares = (self.decision_point, self.first_look, self.perplexity_share)
        is_right = all(is_number(x) and 0 <= x <= 1 for x in shares) and self.decision_point > 0
        if not is_right or not is_number(self.confidence) or self.confidence < 0:
            raise ValueError(
                "guard: decision_point must be in (0, 1], first_look and perplexity_share in "
                f"[0, 1], confidence at least 0, got {shown(self.decision_point)}, "
                f"{shown(self.first_look)}, {shown(self.perplexity_share)} and "
                f"{shown(self.confidence)}"
            )
        for key in ("decision_point", "first_look", "perplexity_share", "confidence"):
            object.__setattr__(self, key, plain(getattr(self, key)))


@dataclass(frozen=True)
class _Unspent(Constraint):
    """Draws only domains that have samples left of their quota."""

    name: ClassVar[str] = "unspent"
    depends_on_cursors: ClassVar[bool] = True
    quotas: IntArray

    def upper(self, context: ConstraintContext) -> FloatArray:
        """1 for domains with samples left, 0 for the others."""
        return (self.quotas > context.consumed).astype(np.float64)


class GuardedRun:
    """A guard in a run: curves, estimate and decision.

    Args:
        guard: The settings.
        anchor: Shares u of the anchor, probabilities of shape (K,).
    """

    def __init__(self, guard: Guard, anchor: FloatArray) -> None:
        if given := len(guard.objective_weights):
            check_one_per_domain("guard: objective_weights", given, anchor.size)
        self.guard, self.anchor = guard, anchor
        self.phase = "open"
        """``open`` until the decision, then ``free`` or ``restoring``."""
        self._decided_at: int | None = None
        self._uncapped_from: int | None = None  # first step whose draw needs no quotas
        self._last_drawn = 0
        self._gain: float | None = None
        self._error: float | None = None
        self._curves = CurveSums.empty(anchor.size, window=_WINDOW)
        self._block = _no_losses(anchor.size)
        self._block_start = 1
        self._set_quotas(guard.total_steps * guard.samples_per_step)

    def _set_quotas(self, total_samples: int) -> None:
        length = self.guard.run_length
        self._quotas = whole_parts(self.anchor, -(-total_samples // length)) * length

    def groups_left(
        self, step: int, cursors: IntArray, *, num_slots: int, run_length: int
    ) -> IntArray | None:
        """Groups of slots that each domain may still get in the draw of a step, or None for any.

        Raises:
            ValueError: If the batch is not the one that the guard knows.
        """
        guard = self.guard
        if (num_slots, run_length) != (guard.samples_per_step, guard.run_length):
            raise ValueError(
                f"guard: a draw has {counted(num_slots, 'sample')} and run_length {run_length}, "
                f"the guard was made for {guard.samples_per_step} and {guard.run_length}; make "
                "them equal"
            )
        self._last_drawn = max(self._last_drawn, step)
        if self._uncapped_from is not None and step >= self._uncapped_from:
            return None
        # rounded up: after a resume with another run_length a remainder is no whole group
        left = -(-np.maximum(self._quotas - cursors, 0) // run_length)
        # more steps than total_steps, or a shorter run than before: quotas cannot be kept
        return left if left.sum() >= num_slots // run_length else None

    def constrained(
        self, limits: Sequence[Constraint], proposal: FloatArray, *, context: ConstraintContext
    ) -> tuple[FloatArray, dict[str, Any]]:
        """Weights within the limits of the user and of the present phase, shape (K,).

        Returns:
            The weights, and the effects as ``apply_constraints`` returns them.
        """
        if self.phase == "restoring":
            left = np.maximum(self._quotas - context.consumed, 0).astype(np.float64)
            weights = normalize(left) if left.any() else self.anchor.copy()
            return weights, {"order": ["guard"], "guard": self.effect()}
        if self.phase == "open" and context.consumed.any():
            limits = (*limits, _Unspent(self._quotas))
        weights, effects = apply_constraints(limits, proposal, context=context)
        return weights, {**effects, "order": [*effects["order"], "guard"], "guard": self.effect()}

    def observe(
        self, step: int, losses: FloatArray, counts: ArrayLike, *, cursors: IntArray
    ) -> None:
        """Learns from a step and decides, if it is time.

        Args:
            step: The step of the losses.
            losses: Mean losses in nats, shape (K,), anything for absent domains.
            counts: Tokens (or another weight) of each mean, shape (K,), 0 for absent domains.
            cursors: Samples drawn from each domain so far, shape (K,).
        """
        guard = self.guard
        clipped = np.clip(losses, -_LARGEST_LOSS, _LARGEST_LOSS)
        weights = np.asarray(counts, dtype=np.float64)
        self._block = self._block.plus(LossPoints.of_step(clipped, weights))
        is_last_look = self.phase == "open" and step >= guard.decision_point * guard.total_steps
        if not is_last_look and step < self._block_start + guard.total_steps // _BLOCKS - 1:
            return
        self._curves = self._curves.add(middle_of_block(self._block_start, step), self._block)
        self._block = _no_losses(self.anchor.size)
        self._block_start = step + 1
        if self.phase == "open" and (is_last_look or step >= guard.first_look * guard.total_steps):
            self._look(step, cursors, is_last=is_last_look)

    def _look(self, step: int, cursors: IntArray, *, is_last: bool) -> None:
        self._gain, self._error = self._estimate(step, cursors)
        is_known = self._gain is not None and self._error is not None
        low = high = 0.0
        if self._gain is not None and self._error is not None:
            margin = self.guard.confidence * self._error
            low, high = self._gain - margin, self._gain + margin
        if (is_known and high < -_NOTHING) or (is_last and low <= _NOTHING):
            self.phase = "restoring"
        elif is_last:
            self.phase, self._uncapped_from = "free", self._last_drawn + 1
        if self.phase != "open":
            self._decided_at = step

    def _estimate(self, step: int, cursors: IntArray) -> tuple[float | None, float | None]:
        """First-order gain over the anchor in nats, and its standard error; None if not known."""
        guard, fit = self.guard, self._curves.fit()
        level = fit.level(math.log(step))[0]
        if np.isnan(level[self.anchor > 0]).any() or not cursors.any():
            return None, None
        counts = relative_weights(guard.objective_weights, level.size)
        worth = worth_of_a_nat(level, perplexity_share=guard.perplexity_share, weights=counts)
        # half a sample stands for none, whose logarithm is infinite
        share = np.maximum(cursors, 0.5) / cursors.sum()
        used = self.anchor > 0  # other domains are not read before the decision
        ratio = np.log(np.where(used, share / np.where(used, self.anchor, 1.0), 1.0))
        factor = worth / counts.sum() * ratio
        gain = -float((factor * fit.slope).sum())
        errors = np.where(factor == 0, 0.0, fit.slope_error)  # 0 times infinity is 0 here
        error = math.sqrt(((factor * errors) ** 2).sum())
        return (gain, error) if math.isfinite(error) else (None, None)

    def effect(self) -> dict[str, Any]:
        """Phase, estimated gain in nats with its error, and step of the decision, as JSON data."""
        return {
            "phase": self.phase,
            "gain": self._gain,
            "error": self._error,
            "decided_at": self._decided_at,
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that a restart needs, as JSON data."""
        return {
            **self.effect(),
            "uncapped_from": self._uncapped_from,
            "curves": self._curves.to_rows(),
            "block": [row.tolist() for row in self._block],
            "block_start": self._block_start,
        }

    def loaded(
        self, state: Mapping[str, Any] | None, *, cursors: IntArray, step: int
    ) -> GuardedRun:
        """A guard that continues from a checked state; None is a run that had no guard yet.

        Args:
            state: What ``state_dict`` returned.
            cursors: Samples drawn from each domain until the state was saved, shape (K,).
            step: Step of the state.
        """
        run = GuardedRun(self.guard, self.anchor)
        steps_left = max(0, self.guard.total_steps - step)
        run._set_quotas(int(cursors.sum()) + steps_left * self.guard.samples_per_step)
        run._last_drawn = step
        if state is None:
            run._block_start = step + 1
            return run
        run.phase, run._decided_at = state["phase"], state["decided_at"]
        run._uncapped_from = state["uncapped_from"]
        run._gain, run._error = state["gain"], state["error"]
        run._curves = CurveSums.from_rows(state["curves"], window=_WINDOW)
        run._block = LossPoints(*np.array(state["block"], dtype=np.float64))
        run._block_start = state["block_start"]
        return run


def _no_losses(num_domains: int) -> LossPoints:
    return LossPoints(*np.zeros((len(LossPoints._fields), num_domains)))


def check_guard_state(num_domains: int) -> Check:
    """Makes a check of what ``GuardedRun.state_dict`` returns."""
    return fields(
        {
            "phase": one_of("open", "free", "restoring"),
            "gain": optional(number()),
            "error": optional(number(0)),
            "decided_at": optional(integer(1)),
            "uncapped_from": optional(integer(1)),
            "curves": curve_rows(num_domains),
            "block": block_rows(num_domains),
            "block_start": integer(1),
        },
        closed=True,
    )


def whole_parts(shares: FloatArray, total: int) -> IntArray:
    """Divides a whole number by shares of shape (K,): parts differ from share x total by below 1.

    The rest after rounding down goes to the largest fractions, of equal ones to the first.
    """
    exact = normalize(shares) * total
    parts = np.floor(exact).astype(np.int64)
    rest = total - int(parts.sum())
    largest = np.argsort(parts - exact, kind="stable")[:rest]
    parts[largest] += 1
    return parts
