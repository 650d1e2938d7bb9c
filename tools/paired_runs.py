"""Statistics for runs that are compared pair by pair: same seed, same validation, other mixture.

Pure functions on arrays; they read no file. ``tools/compare_runs.py`` and
``tools/benchmark/mixing_quality.py`` use them.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

__all__ = [
    "PairedDifference",
    "bootstrap_interval",
    "iterations_to_target",
    "paired_difference",
    "student_interval",
]

RESAMPLES = 10_000
"""Random resamples, where there are too many pairs to list all resamples."""

_LISTED_PAIRS = 6
"""Up to this number n of pairs, all n ** n resamples are listed (46,656), so no chance is left."""


@dataclass(frozen=True)
class PairedDifference:
    """Differences candidate - baseline over n pairs; negative is better for losses."""

    count: int
    """Number n of pairs."""
    mean: float
    num_lower: int
    """Pairs in which the candidate is strictly lower."""
    standard_error: float | None
    """Standard error of the mean; this and the intervals are None with fewer than two pairs."""
    bootstrap: tuple[float, float] | None
    """See `bootstrap_interval`."""
    student: tuple[float, float] | None
    """See `student_interval`."""


def paired_difference(
    candidate: ArrayLike,
    baseline: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> PairedDifference:
    """Compares two arms whose runs form pairs, usually one pair per seed.

    What both runs of a pair share (initial weights, order of documents, validation windows) cancels
    in the difference, so its spread is smaller than that of the values.

    Args:
        candidate: One value per pair, shape (n,), n >= 1.
        baseline: The value of the other run of the same pair, shape (n,).
        level: Probability that an interval is meant to cover the true mean, in (0, 1).
        resamples: See `bootstrap_interval`.
        seed: See `bootstrap_interval`.

    Raises:
        ValueError: If the shapes differ, are empty or not (n,), or a value is not finite.
    """
    first, second = (np.asarray(values, dtype=np.float64) for values in (candidate, baseline))
    if first.shape != second.shape:
        raise ValueError(f"pairs: candidates have shape {first.shape}, baselines {second.shape}")
    differences = _checked(first - second)
    count = differences.size
    is_single = count < 2
    return PairedDifference(
        count=count,
        mean=float(differences.mean()),
        num_lower=int((differences < 0).sum()),
        standard_error=None if is_single else _standard_error(differences),
        bootstrap=None
        if is_single
        else bootstrap_interval(differences, level=level, resamples=resamples, seed=seed),
        student=None if is_single else student_interval(differences, level=level),
    )


def bootstrap_interval(
    values: ArrayLike, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron 1979).

    The same values always give the same interval: up to six values all resamples are listed, and
    beyond that the random ones depend on ``seed`` alone. The interval is never wider than the
    range of the values, so it is too narrow with few values: with three, the range covers the
    median of a continuous distribution with probability 1 - 2 / 2 ** 3 = 75 %. `student_interval`
    has no such limit.

    Args:
        values: Shape (n,), n >= 2.
        level: Share of the resamples' means inside, in (0, 1).
        resamples: Number of random resamples.
        seed: Of the random resamples.

    Raises:
        ValueError: If there are fewer than two values, or one is not finite.
    """
    numbers = _checked(values, at_least=2)
    _check_level(level)
    count = numbers.size
    if count <= _LISTED_PAIRS:
        chosen = np.array(list(itertools.product(range(count), repeat=count)))
    else:
        chosen = np.random.default_rng(seed).integers(0, count, size=(resamples, count))
    means = numbers[chosen].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def student_interval(values: ArrayLike, *, level: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean: mean +- t standard errors, with n - 1 degrees of freedom.

    It is exact for normal values, also with two or three of them.

    Args:
        values: Shape (n,), n >= 2.
        level: Probability that the interval covers the mean, in (0, 1).

    Raises:
        ValueError: If there are fewer than two values, or one is not finite.
    """
    numbers = _checked(values, at_least=2)
    _check_level(level)
    reach = _student_quantile(level, numbers.size - 1) * _standard_error(numbers)
    mean = float(numbers.mean())
    return mean - reach, mean + reach


def iterations_to_target(iterations: ArrayLike, values: ArrayLike, target: float) -> float | None:
    """The iteration at which a curve first falls to ``target``, by linear interpolation.

    A curve that falls ever more slowly is below the straight line between two of its points, so the
    result is late rather than early. Points that are not finite are left out.

    Args:
        iterations: Strictly ascending, shape (T,).
        values: A value that is better when lower, such as a validation loss, shape (T,).
        target: The value to reach.

    Returns:
        The iteration; None if the curve never gets there. If already the first point is at or below
        the target, the iteration of this point, since nothing is known before it.

    Raises:
        ValueError: If the shapes differ or the iterations do not ascend.
    """
    places, curve = (np.asarray(array, dtype=np.float64) for array in (iterations, values))
    if places.ndim != 1 or places.shape != curve.shape:
        raise ValueError(f"curve: {places.shape} iterations for {curve.shape} values")
    if not (np.diff(places) > 0).all():
        raise ValueError("curve: the iterations must ascend")
    known = np.isfinite(curve)
    places, curve = places[known], curve[known]
    reached = np.flatnonzero(curve <= target)
    if not reached.size:
        return None
    after = int(reached[0])
    if after == 0:
        return float(places[0])
    above, below = curve[after - 1], curve[after]
    share = (above - target) / (above - below)
    return float(places[after - 1] + share * (places[after] - places[after - 1]))


def _checked(values: ArrayLike, *, at_least: int = 1) -> np.ndarray:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or numbers.size < at_least or not np.isfinite(numbers).all():
        raise ValueError(f"pairs: must be at least {at_least} finite numbers, got {values}")
    return numbers


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level: must be in (0, 1), got {level}")


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) / math.sqrt(values.size)


def _student_quantile(level: float, degrees: int) -> float:
    """The t with P(|T| <= t) = ``level``.

    With t = sqrt(n) tan(a), the density of Student's distribution with n degrees of freedom is in
    proportion to cos(a) ** (n - 1), which a sum over [0, pi / 2] integrates.
    """
    angles = np.linspace(0.0, math.pi / 2, 20_001)
    density = np.cos(angles) ** (degrees - 1)
    mass = np.concatenate(([0.0], np.cumsum((density[1:] + density[:-1]) / 2)))
    angle = np.interp(level * mass[-1], mass, angles)
    return math.sqrt(degrees) * math.tan(angle)
