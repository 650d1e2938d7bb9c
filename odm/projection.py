"""The closest weights, in relative entropy, within bounds on domains and on groups of domains."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from .simplex import BoolArray, FloatArray, IntArray, normalize

# Sums of K probabilities are off by some units in the last place.
_ROUNDING = 1e-9
_SUM_ERROR = 1e-13


def within_reach(weights: FloatArray, lower: FloatArray, upper: FloatArray) -> FloatArray:
    """Upper bounds, raised so that weights can sum to 1 if the bounds allow less."""
    used = weights > 0
    allowed, wanted = upper[used].sum(), 1.0 - lower[~used].sum()
    if allowed >= wanted:
        return upper
    return upper * (wanted / allowed) if allowed > 0 else np.ones_like(upper)


class GroupBounds(NamedTuple):
    """Bounds on the sum of the weights of some domains."""

    members: IntArray
    """Indices of the domains, int64, in no other group."""
    minimum: float
    maximum: float


def with_groups(
    weights: FloatArray, lower: FloatArray, upper: FloatArray, groups: Iterable[GroupBounds]
) -> tuple[FloatArray, FloatArray]:
    """Bounds of domains that keep the bounds of groups too, if weights are projected into them.

    The sum of a group in ``clip(theta * weights, lower, upper)`` grows with theta. It reaches the
    minimum of the group at one theta and the maximum at another, and what the clip gives there are
    the bounds of its domains. So a group that is limited keeps the ratios within it, and one
    projection into these bounds is the exact one.

    Where bounds contradict each other, those of the domains win.

    Args:
        weights: Weights that will be projected, shape (K,).
        lower: Smallest weights, shape (K,).
        upper: Largest weights, shape (K,).
        groups: Disjoint groups.
    """
    lower, upper = lower.copy(), upper.copy()
    for members, minimum, maximum in groups:
        share, low, high = weights[members], lower[members], upper[members]
        share = share if share.any() else np.ones_like(share)  # no ratios to keep
        least, most = low.sum(), np.where(share > 0, high, low).sum()
        if least < maximum < most:
            upper[members] = _with_sum(maximum, share, low, high)
        elif maximum <= least:
            upper[members] = low
        if least < minimum < most:
            lower[members] = _with_sum(minimum, share, low, high)
        elif minimum >= most:
            lower[members] = np.where(share > 0, high, low)
    return np.minimum(lower, upper), upper


def _with_sum(total: float, share: FloatArray, low: FloatArray, high: FloatArray) -> FloatArray:
    """``clip(theta * share, low, high)`` that sums to ``total``, which is above 0."""
    with np.errstate(over="ignore"):  # a tiny total makes any bound of a domain infinite
        low, high = low / total, high / total
    return project(normalize(share), low, high) * total


def project(weights: FloatArray, lower: FloatArray, upper: FloatArray) -> FloatArray:
    """Returns ``clip(theta * weights, lower, upper)`` that sums to 1, shape (K,)."""
    if (weights >= lower).all() and (weights <= upper).all():
        return weights
    reachable = np.where(weights > 0, upper, lower)
    if lower.sum() > 1 + _ROUNDING or reachable.sum() < 1 - _ROUNDING:
        raise ValueError(
            f"constraints: the lower bounds sum to {lower.sum():.6g} and the upper bounds of "
            f"domains with a positive weight to {reachable.sum():.6g}; the first must be at most "
            "1 and the second at least 1: lower the floors, or raise the ceilings, epoch caps or "
            "maxima of groups"
        )
    used = weights > 0
    share, low, high = weights[used], lower[used], upper[used]
    held, free = _between_corners(share, low, high, wanted=1.0 - lower[~used].sum())
    if free.any():
        rest = 1.0 - held[~free].sum() - lower[~used].sum()
        held[free] = rest * (share[free] / share[free].sum())
    else:  # rounding put all on a bound: the error is shared by those with room
        excess = held.sum() + lower[~used].sum() - 1.0
        room = held - low if excess > 0 else high - held
        if room.any():
            held -= excess * room / room.sum()
    projected = lower.copy()
    projected[used] = np.clip(held, low, high)
    # bounds without slack, whose sums differ from 1 by rounding
    return projected if abs(projected.sum() - 1.0) < _SUM_ERROR else normalize(projected)


def _between_corners(
    share: FloatArray, low: FloatArray, high: FloatArray, *, wanted: float
) -> tuple[FloatArray, BoolArray]:
    """Finds the domains that no bound limits in ``clip(theta * share, low, high)``.

    The sum is piecewise linear in theta, with a corner where a domain leaves its lower bound and
    one where it reaches its upper bound. Each sum is computed from scratch: a running sum would
    lose shares that are many orders of magnitude smaller than others.

    Returns:
        The bound that limits each domain, and which domains no bound limits, if the sum is
        ``wanted``.
    """
    with np.errstate(over="ignore"):  # from shares near the smallest float
        leaves, reaches = low / share, high / share
        corners = np.sort(np.concatenate([leaves, reaches]))
        first, last = 0, corners.size - 1
        while last - first > 1:
            middle = (first + last) // 2
            weights = np.minimum(np.maximum(corners[middle] * share, low), high)
            if weights.sum() < wanted:
                first = middle
            else:
                last = middle
    free = (leaves <= corners[first]) & (reaches >= corners[last])
    return np.where(reaches <= corners[first], high, low), free
