"""Fits ``L(n) = floor + scale * n^-exponent`` to the losses of many domains at once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .simplex import FloatArray

EXPONENTS = (0.05, 0.8)
"""Smallest and largest exponent of a fit."""

_GRID = np.geomspace(*EXPONENTS, 12)
_HALVINGS = 6
"""Times that the distance to the neighbours of the best exponent is halved, in logarithms."""

_SMALLEST_LEVEL = 1e-3
"""Losses below this share of a domain's largest one count as one of this size."""

_ROUNDING = 1e-12


class PowerLaws(NamedTuple):
    """One law per domain; arrays have shape (K,)."""

    floor: FloatArray
    """The loss that no amount of training takes away, in nats, at least 0."""
    reducible: FloatArray
    """The loss above the floor where the logarithm of the step is 0, in nats, at least 0."""
    exponent: FloatArray
    """In `EXPONENTS`."""


def fit_power_laws(log_steps: FloatArray, losses: FloatArray, counts: FloatArray) -> PowerLaws:
    """Fits one law per domain by least squares of the relative error of the loss.

    To first order these are the errors of the logarithm. For a given exponent the best floor and
    scale have a closed form (with neither below 0), so only exponents are searched: on a grid, then
    around its best point. Everything is computed for all domains at once.

    Args:
        log_steps: Logarithms of the steps n of the points, shape (M,), M >= 3; or of n / n_0, which
            gives the laws at step n_0.
        losses: Mean losses in nats, shape (M, K).
        counts: How much each loss counts, shape (M, K); 0 for a missing one. Each domain must have
            at least three points and a positive loss.

    Returns:
        The laws. A domain whose losses do not fall has the reducible loss 0.
    """
    unit = np.where(counts > 0, losses, 0.0).max(axis=0)
    level = np.where(counts > 0, np.maximum(losses / unit, _SMALLEST_LEVEL), 1.0)
    weight = counts / level**2
    weight = weight / weight.sum(axis=0)
    mean = (weight * level).sum(axis=0)
    away = level - mean

    grid = np.exp(-_GRID[:, None] * log_steps)
    middle = grid.mean(axis=1, keepdims=True)
    sums = _sums("gm,mk->gk", grid - middle, middle, weight, away)
    error, _, _ = _floor_and_scale(sums, mean)
    best = _GRID[error.argmin(axis=0)]
    ratio = _GRID[1] / _GRID[0]
    columns = np.arange(best.size)
    for _ in range(_HALVINGS):
        ratio = np.sqrt(ratio)
        near = np.clip(best * np.array([[1.0 / ratio], [1.0], [ratio]]), *EXPONENTS)
        power = np.exp(-near[:, None, :] * log_steps[:, None])
        middle = power.mean(axis=1, keepdims=True)
        sums = _sums("gmk,mk->gk", power - middle, middle[:, 0], weight, away)
        error, floor, scale = _floor_and_scale(sums, mean)
        chosen = error.argmin(axis=0), columns
        best = near[chosen]
    return PowerLaws(floor[chosen] * unit, scale[chosen] * unit, best)


class _Sums(NamedTuple):
    """Weighted means over the points for G exponents, each of shape (G, K)."""

    power: FloatArray
    """Mean of x = n^-exponent."""
    variance: FloatArray
    """Of x."""
    covariance: FloatArray
    """Of x and the loss."""


def _sums(
    subscripts: str, power: FloatArray, middle: FloatArray, weight: FloatArray, away: FloatArray
) -> _Sums:
    """Sums over the points; by einsum, whose rounding does not depend on a number of threads.

    Args:
        subscripts: Of einsum, for ``power`` and a table of shape (M, K).
        power: x less ``middle``, shape (G, M) or (G, M, K).
        middle: Numbers near the mean of x, shape (G, 1) or (G, K).
        weight: Weights of the losses that sum to 1 per domain, shape (M, K).
        away: Losses less their weighted mean, shape (M, K).
    """
    mean = np.einsum(subscripts, power, weight)
    square = np.einsum(subscripts, power * power, weight)
    covariance = np.einsum(subscripts, power, weight * away)
    return _Sums(mean + middle, np.maximum(square - mean * mean, 0.0), covariance)


def _floor_and_scale(sums: _Sums, mean: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The best floor and scale for each exponent, by weighted least squares.

    Args:
        sums: Over the points.
        mean: Weighted mean loss, shape (K,).

    Returns:
        How much larger the mean square of what is left is than that of another exponent; floor;
        scale. Each has shape (G, K).
    """
    power, variance, covariance = sums
    is_falling = (covariance > 0) & (variance > (_ROUNDING * power) ** 2)
    scale = np.where(is_falling, covariance, 0.0) / np.where(is_falling, variance, 1.0)
    floor = mean - scale * power
    square, product = variance + power * power, covariance + mean * power
    is_below = floor < 0
    scale = np.where(is_below, product / square, scale)
    floor = np.where(is_below, 0.0, floor)
    gain = np.where(is_below, product * product / square - mean * mean, scale * covariance)
    scale = np.where(scale * power > _ROUNDING * mean, scale, 0.0)
    return -gain, floor, scale
