"""Arithmetic on probability vectors that every part of the library shares."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence, Set

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arguments import number_array, refuse_argument, wrong_values
from .wording import counted, shown

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

_SAFE_SUMMAND = 1e280
"""Numbers up to this have a finite sum, however many of them fit into memory."""


def check_domains(domains: Sequence[str], *, where: str = "domains") -> tuple[str, ...]:
    """Returns names as a tuple after checking that they are unique, non-empty strings.

    Raises:
        ValueError: If there is no name, the names have no order (a set), a name is not a string,
            is not valid Unicode (it could not be saved), or occurs twice.
    """
    if isinstance(domains, (str, bytes, Set)) or not isinstance(domains, Iterable):
        refuse_argument(where, "a list of names, whose order is kept", domains)
    names = tuple(domains)
    if not names:
        raise ValueError(f"{where}: the list is empty; give at least one name")
    seen: set[str] = set()
    for name in names:
        if not isinstance(name, str) or not name:
            refuse_argument(f"{where}: names", "non-empty strings", name)
        if not name.isascii() and not _is_unicode(name):
            refuse_argument(f"{where}: names", "valid Unicode", name)
        if name in seen:
            raise ValueError(f"{where}: {shown(name)} is named twice; give each its own name")
        seen.add(name)
    return names


def check_weights(weights: ArrayLike, num_domains: int, *, where: str = "weights") -> FloatArray:
    """Returns raw weights as a new float64 array of shape (K,) after checking them.

    Raises:
        ValueError: If the shape is wrong, a weight is negative or not finite, all are 0, or their
            sum overflows.
    """
    values = number_array(where, weights)
    if values.shape != (num_domains,):
        raise ValueError(
            f"{where}: expected {counted(num_domains, 'weight')}, one per domain, got shape "
            f"{values.shape}"
        )
    is_right = (values >= 0) & (values < np.inf)
    if not holds_everywhere(is_right):
        got = wrong_values(values, is_right)
        raise ValueError(f"{where}: must be finite and not negative, got {got}")
    if holds_everywhere(values <= _SAFE_SUMMAND) and np.count_nonzero(values):
        return values
    with np.errstate(over="ignore"):
        total = values.sum()
    if not total > 0:
        raise ValueError(f"{where}: all weights are 0; at least one must be positive")
    if not np.isfinite(total):
        got = wrong_values(values, values <= _SAFE_SUMMAND)
        raise ValueError(f"{where}: the sum is too large for a float, got {got}")
    return values


def _is_unicode(name: str) -> bool:
    """Whether a name can be written as UTF-8: it has no half of a surrogate pair."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def holds_everywhere(mask: BoolArray) -> bool:
    """As ``mask.all()``, but several times faster for a few domains."""
    return int(np.count_nonzero(mask)) == mask.size


def normalize(values: FloatArray) -> FloatArray:
    """Divides non-negative values of shape (K,) by their sum."""
    return values / values.sum()


def softmax(logits: FloatArray) -> FloatArray:
    """Gibbs distribution of finite logits, shape (K,), by subtracting the maximum first."""
    return normalize(np.exp(logits - logits.max()))


def exploration_rate(step: int, num_domains: int) -> float:
    """Uniform share per domain at a step: ``min(1 / K, sqrt(ln K / (K * step)))``.

    Source: arXiv:2312.02406, which takes it from EXP3.
    """
    return min(1.0 / num_domains, math.sqrt(math.log(num_domains) / (num_domains * step)))


def mix_with_uniform(share: FloatArray, floor: float) -> FloatArray:
    """Gives every domain at least ``floor``, and divides the rest by ``share``; the sum is 1."""
    # 1 - K * (1 / K) is 1.1e-16 for some K, and never negative enough to matter; max excludes it.
    free = max(0.0, 1.0 - share.size * floor)
    return normalize(floor + free * share)


def total_variation(first: FloatArray, second: FloatArray) -> float:
    """Half of the sum of absolute differences: the share of draws that change domain."""
    return 0.5 * float(np.abs(first - second).sum())


def kl_divergence(first: FloatArray, second: FloatArray) -> float:
    """``KL(first || second)`` in nats; infinite where ``second`` is 0 and ``first`` is not."""
    used = first > 0
    if (second[used] <= 0).any():
        return math.inf
    return max(0.0, float((first[used] * np.log(first[used] / second[used])).sum()))
