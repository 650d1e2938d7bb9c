"""Limits on the weights of any mixer: floor, ceiling, epoch cap, trust region.

They are applied in a fixed order, whatever the order in which they are listed:

1. **bounds**: all floors, ceilings and epoch caps at once. The weights w become
   ``clip(theta * w, lower, upper)`` with the one theta that makes them sum to 1, the closest
   point in relative entropy. If a floor contradicts a cap, the cap wins. Draws are random, so they
   may use up a domain so fast that caps and ceilings sum to less than 1. Then all upper bounds are
   raised in proportion, or dropped if no domain that the mixer draws has anything left.
2. **trust region**: a straight step from the last weights towards the result of 1. Bounds that both
   ends satisfy are satisfied after the step too.
3. **bounds** again, if an epoch cap has meanwhile fallen below the last weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .json_data import is_number, plain
from .simplex import BoolArray, FloatArray, IntArray, kl_divergence, normalize, total_variation

# Sums of K probabilities are off by some units in the last place.
_ROUNDING = 1e-9
_SUM_ERROR = 1e-13
_BISECTIONS = 50


@dataclass(frozen=True, eq=False)
class ConstraintContext:
    """The information that a constraint may use."""

    previous: FloatArray
    """Weights of the last step, probabilities of shape (K,)."""
    consumed: IntArray
    """Samples drawn from each domain so far, int64, shape (K,)."""


class Constraint:
    """A lower and an upper bound per weight; subclasses are frozen dataclasses."""

    name: ClassVar[str] = ""

    def options(self) -> dict[str, Any]:
        """The constraint's name and fields as JSON data."""
        fields = dataclasses.asdict(self)  # type: ignore[call-overload]
        values = {key: plain(value) for key, value in fields.items()}
        lists = {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}
        return {"name": self.name, **lists}

    def lower(self, context: ConstraintContext) -> FloatArray | None:
        """Smallest allowed weights, shape (K,), or None."""
        return None

    def upper(self, context: ConstraintContext) -> FloatArray | None:
        """Largest allowed weights, shape (K,), or None."""
        return None


@dataclass(frozen=True)
class Floor(Constraint):
    """Keeps every weight at ``minimum`` or above."""

    name: ClassVar[str] = "floor"
    minimum: float | tuple[float, ...] = 0.0
    """One number for all domains or one per domain, in [0, 1]; their sum is at most 1."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "minimum", _fractions("floor: minimum", self.minimum))

    def lower(self, context: ConstraintContext) -> FloatArray:
        """The minimum per domain, shape (K,)."""
        return _spread("floor: minimum", self.minimum, context.previous.size)


@dataclass(frozen=True)
class Ceiling(Constraint):
    """Keeps every weight at ``maximum`` or below."""

    name: ClassVar[str] = "ceiling"
    maximum: float | tuple[float, ...] = 1.0
    """One number for all domains or one per domain, in [0, 1]; their sum is at least 1."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "maximum", _fractions("ceiling: maximum", self.maximum))

    def upper(self, context: ConstraintContext) -> FloatArray:
        """The maximum per domain, shape (K,)."""
        return _spread("ceiling: maximum", self.maximum, context.previous.size)


@dataclass(frozen=True)
class EpochCap(Constraint):
    """Reads no domain more than ``max_epochs`` times within a run of ``total_samples``.

    A weight is at most the samples that are left of the domain, divided by those that are left of
    the run. Draws are random, so a domain may overshoot by the noise of its last steps (below one
    sample per step with stratified draws). After ``total_samples`` only domains with samples left
    are drawn.

    With equal weights from the mixer this is an online form of UniMax (arXiv:2304.09151).
    """

    name: ClassVar[str] = "epoch_cap"
    max_epochs: float | tuple[float, ...]
    """Passes over a domain, > 0: one number for all domains or one per domain."""
    domain_sizes: tuple[int, ...]
    """Samples per epoch of each domain, in the order of the domains."""
    total_samples: int
    """Samples that the whole run draws: steps times global batch size."""

    def __post_init__(self) -> None:
        sizes = tuple(int(size) for size in self.domain_sizes)
        object.__setattr__(self, "domain_sizes", sizes)
        epochs = np.array(self.max_epochs, dtype=np.float64)
        if (
            epochs.ndim > 1
            or not (np.isfinite(epochs) & (epochs > 0)).all()
            or self.total_samples < 1
            or not sizes
            or min(sizes) < 1
        ):
            raise ValueError(
                "epoch_cap: max_epochs, domain_sizes and total_samples must be positive, got "
                f"{self.max_epochs}, {list(sizes)} and {self.total_samples}"
            )
        plain = epochs.tolist()
        object.__setattr__(self, "max_epochs", tuple(plain) if epochs.ndim else plain)
        object.__setattr__(self, "total_samples", int(self.total_samples))
        samples = _spread("epoch_cap: max_epochs", self.max_epochs, len(sizes)) * np.array(sizes)
        if samples.sum() < self.total_samples * (1 - _ROUNDING):
            factor = self.total_samples / samples.sum()
            raise ValueError(
                f"epoch_cap: {_shown(self.max_epochs)} epochs of the domains are "
                f"{samples.sum():.0f} samples, the run draws {self.total_samples}; raise "
                f"max_epochs to at least {_shown((epochs * factor).tolist())} or train for fewer "
                "steps"
            )

    def upper(self, context: ConstraintContext) -> FloatArray | None:
        """Samples left per domain, divided by those left of the run; None if none are left."""
        _expect("epoch_cap: domain_sizes", len(self.domain_sizes), context.previous.size)
        sizes = np.array(self.domain_sizes, dtype=np.float64)
        left = np.maximum(0.0, np.asarray(self.max_epochs) * sizes - context.consumed)
        run_left = self.total_samples - int(context.consumed.sum())
        if run_left > 0:
            return np.minimum(1.0, left / run_left)
        return (left > 0).astype(np.float64) if left.any() else None


@dataclass(frozen=True)
class TrustRegion(Constraint):
    """Limits how far the weights move per step. Give one of the two measures."""

    name: ClassVar[str] = "trust_region"
    max_kl: float | None = None
    """Largest ``KL(previous || next)`` in nats; in this direction a domain can come back from 0."""
    max_total_variation: float | None = None
    """Largest share of draws that may change domain, in (0, 1]."""

    def __post_init__(self) -> None:
        limits = [x for x in (self.max_kl, self.max_total_variation) if x is not None]
        if len(limits) != 1 or not (is_number(limits[0]) and limits[0] > 0):
            raise ValueError(
                "trust_region: give either max_kl or max_total_variation, above 0, got "
                f"{self.max_kl} and {self.max_total_variation}"
            )

    def fraction(self, previous: FloatArray, target: FloatArray) -> float:
        """How much of the way from ``previous`` to ``target`` the limit allows, in (0, 1]."""
        if self.max_total_variation is not None:
            distance = total_variation(previous, target)
            return min(1.0, self.max_total_variation / distance) if distance > 0 else 1.0
        assert self.max_kl is not None
        if kl_divergence(previous, target) <= self.max_kl:
            return 1.0
        # KL grows along the line: it is convex in the fraction and 0 at the start.
        low, high = 0.0, 1.0
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            if kl_divergence(previous, previous + middle * (target - previous)) <= self.max_kl:
                low = middle
            else:
                high = middle
        return low


def apply_constraints(
    constraints: Sequence[Constraint], target: FloatArray, *, context: ConstraintContext
) -> tuple[FloatArray, dict[str, Any]]:
    """Changes a mixer's weights to satisfy all limits, in the order given at the top of this file.

    Args:
        constraints: The limits, in any order.
        target: Probabilities that the mixer proposes, shape (K,).
        context: The last weights, and the samples drawn so far.

    Returns:
        Probabilities, shape (K,), and the effects as JSON data: ``order`` lists the steps; a bound
        has the indices of the domains that it limits, the trust region the fraction that it
        allowed.

    Raises:
        ValueError: If no weights can satisfy the bounds; the message has the sums.
    """
    effects: dict[str, Any] = {"order": []}
    lower, upper = _bounds(constraints, context)
    if context.consumed.any() and any(isinstance(c, EpochCap) for c in constraints):
        upper = _within_reach(target, lower, upper)
    weights = _project(target, lower, upper)
    for region in (c for c in constraints if isinstance(c, TrustRegion)):
        fraction = region.fraction(context.previous, weights)
        if fraction < 1.0:
            weights = context.previous + fraction * (weights - context.previous)
            weights = _project(normalize(weights), lower, upper)
        effects[region.name] = fraction
    for constraint in (c for c in constraints if not isinstance(c, TrustRegion)):
        effects["order"].append(constraint.name)
        effects[constraint.name] = _held_by(constraint, weights, context)
    effects["order"].extend(c.name for c in constraints if isinstance(c, TrustRegion))
    return weights, effects


def _bounds(
    constraints: Sequence[Constraint], context: ConstraintContext
) -> tuple[FloatArray, FloatArray]:
    lower, upper = np.zeros(context.previous.size), np.ones(context.previous.size)
    for constraint in constraints:
        low, high = constraint.lower(context), constraint.upper(context)
        lower = lower if low is None else np.maximum(lower, low)
        upper = upper if high is None else np.minimum(upper, high)
    return np.minimum(lower, upper), upper


def _within_reach(weights: FloatArray, lower: FloatArray, upper: FloatArray) -> FloatArray:
    """Upper bounds, raised so that weights can sum to 1 if the bounds allow less."""
    used = weights > 0
    allowed, wanted = upper[used].sum(), 1.0 - lower[~used].sum()
    if allowed >= wanted:
        return upper
    return upper * (wanted / allowed) if allowed > 0 else np.ones_like(upper)


def _project(weights: FloatArray, lower: FloatArray, upper: FloatArray) -> FloatArray:
    """Returns ``clip(theta * weights, lower, upper)`` that sums to 1, shape (K,)."""
    if (weights >= lower).all() and (weights <= upper).all():
        return weights
    reachable = np.where(weights > 0, upper, lower)
    if lower.sum() > 1 + _ROUNDING or reachable.sum() < 1 - _ROUNDING:
        raise ValueError(
            f"constraints: the lower bounds sum to {lower.sum():.6g} and the upper bounds of "
            f"domains with a positive weight to {reachable.sum():.6g}; the first must be at most "
            "1 and the second at least 1: lower the floor, or raise the ceiling or the epoch cap"
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


def _held_by(constraint: Constraint, weights: FloatArray, context: ConstraintContext) -> list[int]:
    low, high = constraint.lower(context), constraint.upper(context)
    held = np.zeros(weights.size, dtype=bool)
    if low is not None:
        held |= weights <= low * (1 + _ROUNDING)
    if high is not None:
        held |= weights >= high * (1 - _ROUNDING)
    return np.flatnonzero(held).tolist()


def _fractions(where: str, value: float | Sequence[float]) -> float | tuple[float, ...]:
    """Checks one fraction, or one per domain; returns a float or a tuple of floats."""
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):  # text, lists of several lengths
        array = np.array(np.nan)
    if array.ndim > 1 or not ((array >= 0) & (array <= 1)).all():
        raise ValueError(f"{where} must be in [0, 1], one number or one per domain, got {value}")
    return float(array) if array.ndim == 0 else tuple(array.tolist())


def _shown(value: float | Sequence[float]) -> str:
    """One number or a list, with four digits each."""
    if isinstance(value, Sequence):
        return f"[{', '.join(f'{number:.4g}' for number in value)}]"
    return f"{value:.4g}"


def _spread(where: str, value: float | tuple[float, ...], num_domains: int) -> FloatArray:
    if isinstance(value, tuple):
        _expect(where, len(value), num_domains)
    return np.broadcast_to(np.asarray(value, dtype=np.float64), (num_domains,))


def _expect(where: str, given: int, num_domains: int) -> None:
    if given != num_domains:
        raise ValueError(f"{where} has {given} entries, the run has {num_domains} domains")
