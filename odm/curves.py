"""Learning curves, fitted while training runs: the loss of each domain against ln(step).

Over a factor of a few in steps, a learning curve is close to a straight line in the logarithm of
the step. `CurveSums` fits that line by weighted least squares. Old points lose weight as a power of
the step, so that the window has a constant length in ln(step): at step 10,000 it is ten times as
many steps long as at step 1,000.

    sums = CurveSums.empty(num_domains, window=1.0)
    sums = sums.add(math.log(step), points)         # once per block of steps, see `LossPoints`
    fit = sums.fit()
    fit.slope, fit.slope_error                      # nats per e-fold of steps, negative: it falls
    fit.level(math.log(2 * step))                   # forecast, and its standard error
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .json_data import Check, list_of, number
from .simplex import FloatArray

_ROWS = 10
"""Sums per domain, over points with w = weight x forgetting: steps x forgetting, w, w x, w y,
w x x, w x y, w y y, and, for the errors, v, v x, v x x with v = w x forgetting. y is the loss, x
ln(step) less that of the last point."""

NUM_ROWS = _ROWS + 1
"""Lists of K numbers that are the sums as JSON data."""

_FEWEST_STEPS = 4.0

MAX_LOG_STEP = 44.0
"""ln(step) of any step is below: steps are 63-bit numbers."""

LARGEST_SUM = 1e30
"""No sum of a saved state is larger."""

_COUNTS = (0, 1, 7)  # rows of numbers that are not negative


class LossPoints(NamedTuple):
    """Sums over the steps of a block, which becomes one point of each curve; arrays (K,).

    Steps, not blocks, tell how much a loss varies, so that errors are known after a few blocks.
    """

    steps: FloatArray
    """Steps with a loss."""
    weight: FloatArray
    """Sum of the weights of these losses, such as their tokens."""
    loss: FloatArray
    """Sum of weight x loss, in nats."""
    squares: FloatArray
    """Sum of weight x loss squared."""

    @classmethod
    def of_step(cls, losses: FloatArray, counts: FloatArray) -> LossPoints:
        """The sums of one step; where a count is 0, the loss has no effect."""
        has_loss = counts > 0
        known = np.where(has_loss, losses, 0.0)
        loss = counts * known
        return cls(has_loss.astype(np.float64), counts, loss, loss * known)

    def plus(self, other: LossPoints) -> LossPoints:
        """The sums over both."""
        return LossPoints(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


@dataclass(frozen=True, eq=False)
class CurveFit:
    """A line per domain, with errors; arrays have shape (K,).

    A domain with too few points for a slope has slope 0 and an infinite error; a domain without a
    point also has level nan.
    """

    slope: FloatArray
    """Change of the loss per e-fold of steps, in nats; negative while the loss falls."""
    slope_error: FloatArray
    """Standard error of ``slope``, from the spread of the losses around the line."""
    log_step: FloatArray
    """ln(step) at the centre of the points."""
    mean: FloatArray
    """Loss of the line there, in nats."""
    mean_variance: FloatArray
    """Square of the standard error of ``mean``."""
    covariance: FloatArray
    """Covariance of ``mean`` and ``slope``; 0 if all points counted alike."""

    def level(self, log_step: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Loss of the line in nats at any ln(step), and its standard error, both of shape (K,).

        The error is that of the line. A forecast beyond the points assumes that the line continues;
        learning curves flatten, so the loss then is rather higher.
        """
        away = np.asarray(log_step, dtype=np.float64) - self.log_step
        with np.errstate(invalid="ignore"):
            variance = self.mean_variance + 2.0 * away * self.covariance
            variance = variance + np.where(away == 0.0, 0.0, (away * self.slope_error) ** 2)
        return self.mean + away * self.slope, np.sqrt(np.maximum(variance, 0.0))


@dataclass(frozen=True, eq=False)
class CurveSums:
    """The sums of weighted least squares, all that a fit needs from the past."""

    table: FloatArray
    """Shape (10, K)."""
    log_step: FloatArray
    """ln(step) of the last point of each domain, shape (K,); 0 before the first."""
    window: float
    """A point that is this much older in ln(step) has 1 / e of the weight."""

    @classmethod
    def empty(cls, num_domains: int, *, window: float) -> CurveSums:
        """Sums before the first point."""
        return cls(np.zeros((_ROWS, num_domains)), np.zeros(num_domains), window)

    def add(
        self, log_step: ArrayLike, points: LossPoints, *, repeats: ArrayLike = 1.0
    ) -> CurveSums:
        """Adds a point per domain; a domain with weight 0 stays as it is.

        Args:
            log_step: ln(step) at the middle of the block, a number or shape (K,).
            points: Sums over the block.
            repeats: Number of points over which the same measurement is counted, a number or shape
                (K,): errors are larger by its square root.
        """
        x = np.broadcast_to(np.asarray(log_step, dtype=np.float64), self.log_step.shape)
        passed = x - self.log_step
        keep = np.exp(-np.maximum(passed, 0.0) / self.window)
        steps, w, wx, wy, wxx, wxy, wyy, v, vx, vxx = self.table
        # All x are relative to the last point, so that no sum loses digits in a long run.
        moved = keep * np.array(
            [
                steps,
                w,
                wx - passed * w,
                wy,
                wxx - passed * (2.0 * wx - passed * w),
                wxy - passed * wy,
                wyy,
                keep * v,
                keep * (vx - passed * v),
                keep * (vxx - passed * (2.0 * vx - passed * v)),
            ]
        )
        for row, added in ((0, points.steps), (1, points.weight), (3, points.loss)):
            moved[row] += added
        moved[6] += points.squares
        moved[7] += points.weight * np.asarray(repeats, dtype=np.float64)
        has_point = points.weight > 0
        return replace(
            self,
            table=np.where(has_point, moved, self.table),
            log_step=np.where(has_point, x, self.log_step),
        )

    def forget(self, domains: np.ndarray) -> CurveSums:
        """Removes all points of some domains, given as a mask of shape (K,)."""
        return replace(
            self,
            table=np.where(domains, 0.0, self.table),
            log_step=np.where(domains, 0.0, self.log_step),
        )

    def fit(self) -> CurveFit:
        """The lines through the points so far."""
        steps, w, wx, wy, wxx, wxy, wyy, v, vx, vxx = self.table
        some = w > 0
        total = np.where(some, w, 1.0)
        x, y = wx / total, wy / total
        spread = wxx - total * x * x
        known = some & (spread > 1e-12 * total) & (steps >= _FEWEST_STEPS)
        divisor = np.where(known, spread, 1.0)
        slope = np.where(known, (wxy - total * x * y) / divisor, 0.0)
        rest = np.maximum(wyy - total * y * y - slope * slope * np.where(known, spread, 0.0), 0.0)
        variance = rest / np.maximum(steps - 2.0, 1.0)
        around = vx - x * v, vxx - x * (2.0 * vx - x * v)
        slope_variance = variance * np.maximum(around[1], 0.0) / divisor**2
        return CurveFit(
            slope=slope,
            slope_error=np.where(known, np.sqrt(slope_variance), np.inf),
            log_step=self.log_step + x,
            mean=np.where(some, y, np.nan),
            mean_variance=np.where(some, variance * v / total**2, np.inf),
            covariance=np.where(known, variance * around[0] / (total * divisor), 0.0),
        )

    def to_rows(self) -> list[list[float]]:
        """The sums as JSON data: `NUM_ROWS` lists of K numbers."""
        return [*self.table.tolist(), self.log_step.tolist()]

    @classmethod
    def from_rows(cls, rows: list[list[float]], *, window: float) -> CurveSums:
        """The sums from ``to_rows``."""
        table = np.array(rows, dtype=np.float64)
        return cls(table[:_ROWS], table[_ROWS], window)


def curve_rows(num_domains: int) -> Check:
    """Makes a check of what ``CurveSums.to_rows`` returns."""
    rows = _sum_rows(NUM_ROWS, num_domains, counts=_COUNTS)
    log_steps = list_of(number(0, MAX_LOG_STEP), num_domains)

    def check(value: Any, where: str) -> None:
        rows(value, where)
        log_steps(value[_ROWS], f"{where}[{_ROWS}]")

    return check


def block_rows(num_domains: int) -> Check:
    """Makes a check of a block of `LossPoints` as lists; only a loss may be negative."""
    names = LossPoints._fields
    counts = [row for row, name in enumerate(names) if name != "loss"]
    return _sum_rows(len(names), num_domains, counts=counts)


def _sum_rows(num_rows: int, num_domains: int, *, counts: Sequence[int]) -> Check:
    """Makes a check of rows of K sums, of which those at ``counts`` are not negative."""
    rows = list_of(list_of(number(-LARGEST_SUM, LARGEST_SUM), num_domains), num_rows)
    not_negative = list_of(number(0, LARGEST_SUM), num_domains)

    def check(value: Any, where: str) -> None:
        rows(value, where)
        for row in counts:
            not_negative(value[row], f"{where}[{row}]")

    return check


def middle_of_block(first_step: int, last_step: int) -> float:
    """ln(step) at the middle of a block of steps."""
    return math.log(0.5 * (first_step + last_step))
