"""Limits on the weights of any mixer: floor, ceiling, epoch cap, groups, trust region.

They are applied in a fixed order, whatever the order in which they are listed:

1. **bounds**: all floors, ceilings, epoch caps and limits of groups at once. The weights w become
   ``clip(theta * w, lower, upper)`` with the one theta that makes them sum to 1, the closest
   point in relative entropy. A group whose sum is limited has a theta of its own, so the ratios
   within it stay. If a floor contradicts a cap, the cap wins. Draws are random, so they
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

from .arguments import (
    check_kind,
    check_one_per_domain,
    number_array,
    refuse_argument,
    some,
    whole_number,
    whole_numbers,
)
from .json_data import is_number, plain
from .projection import GroupBounds, project, with_groups, within_reach
from .simplex import (
    FloatArray,
    IntArray,
    check_domains,
    kl_divergence,
    normalize,
    total_variation,
)
from .wording import shown

# Sums of K probabilities are off by some units in the last place.
_ROUNDING = 1e-9
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
    depends_on_cursors: ClassVar[bool] = False
    """Whether its bounds move with the samples that are drawn."""

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

    def groups(self, num_domains: int) -> tuple[GroupBounds, ...]:
        """Limits on sums of weights; the groups are disjoint."""
        return ()

    def held(self, weights: FloatArray, context: ConstraintContext) -> list[Any]:
        """What is at a bound: indices of domains, or names of groups."""
        low, high = self.lower(context), self.upper(context)
        held = np.zeros(weights.size, dtype=bool)
        if low is not None:
            held |= weights <= low * (1 + _ROUNDING)
        if high is not None:
            held |= weights >= high * (1 - _ROUNDING)
        return np.flatnonzero(held).tolist()


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
    depends_on_cursors: ClassVar[bool] = True
    max_epochs: float | tuple[float, ...]
    """Passes over a domain, > 0: one number for all domains or one per domain."""
    domain_sizes: tuple[int, ...]
    """Samples per epoch of each domain, in the order of the domains."""
    total_samples: int
    """Samples that the whole run draws: steps times global batch size."""

    def __post_init__(self) -> None:
        sizes = whole_numbers("epoch_cap: domain_sizes", self.domain_sizes, 1)
        total = whole_number("epoch_cap: total_samples", self.total_samples, 1)
        object.__setattr__(self, "domain_sizes", sizes)
        object.__setattr__(self, "total_samples", total)
        epochs = number_array("epoch_cap: max_epochs", self.max_epochs)
        if epochs.ndim > 1 or not sizes or not (np.isfinite(epochs) & (epochs > 0)).all():
            raise ValueError(
                "epoch_cap: max_epochs must be above 0, one number or one per domain, and there "
                f"must be domain_sizes, got {shown(self.max_epochs)} and {len(sizes)} sizes"
            )
        plain = epochs.tolist()
        object.__setattr__(self, "max_epochs", tuple(plain) if epochs.ndim else plain)
        spread = _spread("epoch_cap: max_epochs", self.max_epochs, len(sizes))
        with np.errstate(over="ignore"):  # as good as no limit
            samples = (spread * np.array(sizes)).sum()
        if samples < self.total_samples * (1 - _ROUNDING):
            with np.errstate(over="ignore"):
                needed = epochs * (self.total_samples / samples)
            least = f" to at least {_shown(needed.tolist())}" if np.isfinite(needed).all() else ""
            raise ValueError(
                f"epoch_cap: {_shown(self.max_epochs)} epochs of the domains are "
                f"{samples:.0f} samples, the run draws {self.total_samples}; raise "
                f"max_epochs{least} or train for fewer steps"
            )

    def upper(self, context: ConstraintContext) -> FloatArray | None:
        """Samples left per domain, divided by those left of the run; None if none are left."""
        num_domains = context.previous.size
        check_one_per_domain("epoch_cap: domain_sizes", len(self.domain_sizes), num_domains)
        sizes = np.array(self.domain_sizes, dtype=np.float64)
        with np.errstate(over="ignore"):
            left = np.maximum(0.0, np.asarray(self.max_epochs) * sizes - context.consumed)
        run_left = self.total_samples - int(context.consumed.sum())
        if run_left > 0:
            return np.minimum(1.0, left / run_left)
        return (left > 0).astype(np.float64) if left.any() else None


@dataclass(frozen=True)
class GroupLimits(Constraint):
    """Keeps the sum of the weights of each group of domains within two bounds.

    In the effects of a decision it has the names of the groups that are at one of their bounds.
    """

    name: ClassVar[str] = "group_limits"
    names: tuple[str, ...]
    """Names of the groups."""
    members: tuple[tuple[int, ...], ...]
    """Indices of the domains of each group; a domain is in one group at most."""
    minimum: tuple[float, ...]
    """Smallest sum of each group, in [0, 1]; together at most 1."""
    maximum: tuple[float, ...]
    """Largest sum of each group, in [0, 1], not below its minimum."""

    def __post_init__(self) -> None:
        where = "group_limits"
        for name in ("names", "members", "minimum", "maximum"):
            if not isinstance(getattr(self, name), (list, tuple)):
                refuse_argument(
                    f"{where}: {name}", "a list, an entry per group", getattr(self, name)
                )
        parts = tuple(whole_numbers(f"{where}: members", part) for part in self.members)
        object.__setattr__(self, "names", check_domains(self.names, where=f"{where}: names"))
        object.__setattr__(self, "members", parts)
        for bound in ("minimum", "maximum"):
            values = _fractions(f"{where}: {bound}", tuple(getattr(self, bound)))
            object.__setattr__(self, bound, values)
        numbers = [number for part in self.members for number in part]
        lengths = {len(getattr(self, field.name)) for field in dataclasses.fields(self)}
        if len(lengths) != 1 or not all(self.members):
            raise ValueError(f"{where}: a group needs a name, domains and two bounds, got {self}")
        if len(set(numbers)) < len(numbers):
            twice = next(number for number in numbers if numbers.count(number) > 1)
            raise ValueError(f"{where}: domain {twice} is named twice; leave it in one group, once")
        for name, low, high in zip(self.names, self.minimum, self.maximum, strict=True):
            if low > high:
                raise ValueError(f"{where}: {name} has the minimum {low} and the maximum {high}")

    def groups(self, num_domains: int) -> tuple[GroupBounds, ...]:
        """The groups, in their order."""
        largest = max(max(part) for part in self.members)
        if largest >= num_domains:
            raise ValueError(f"group_limits: no domain {largest}, the run has {num_domains}")
        parts = zip(self.members, self.minimum, self.maximum, strict=True)
        return tuple(GroupBounds(np.array(part), low, high) for part, low, high in parts)

    def held(self, weights: FloatArray, context: ConstraintContext) -> list[Any]:
        """Names of the groups that are at one of their bounds."""
        found = []
        parts = zip(self.names, self.groups(weights.size), strict=True)
        for name, (members, minimum, maximum) in parts:
            total = weights[members].sum()
            is_low = 0 < minimum and total <= minimum * (1 + _ROUNDING)
            if is_low or (maximum < 1 and total >= maximum * (1 - _ROUNDING)):
                found.append(name)
        return found


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
                f"{shown(self.max_kl)} and {shown(self.max_total_variation)}"
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


def check_constraints(constraints: Any) -> tuple[Constraint, ...]:
    """Returns limits as a tuple, after a check that they are a list and each of them is a limit."""
    if not isinstance(constraints, Sequence) or isinstance(constraints, str):
        refuse_argument("controller: constraints", "a list of limits", constraints)
    for limit in constraints:
        check_kind("controller: constraints: each", limit, Constraint, example="Floor(0.05)")
    return tuple(constraints)


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
        has the indices of the domains that it limits, limits of groups the names of the groups,
        the trust region the fraction that it allowed.

    Raises:
        ValueError: If no weights can satisfy the bounds; the message has the sums.
    """
    effects: dict[str, Any] = {"order": []}
    weights = _bounded(target, constraints, context)
    for region in (c for c in constraints if isinstance(c, TrustRegion)):
        fraction = region.fraction(context.previous, weights)
        if fraction < 1.0:
            weights = context.previous + fraction * (weights - context.previous)
            weights = _bounded(normalize(weights), constraints, context)
        effects[region.name] = fraction
    for constraint in (c for c in constraints if not isinstance(c, TrustRegion)):
        effects["order"].append(constraint.name)
        effects[constraint.name] = constraint.held(weights, context)
    effects["order"].extend(c.name for c in constraints if isinstance(c, TrustRegion))
    return weights, effects


def _bounded(
    target: FloatArray, constraints: Sequence[Constraint], context: ConstraintContext
) -> FloatArray:
    """The closest weights within all bounds, shape (K,)."""
    is_used_up = context.consumed.any() and any(c.depends_on_cursors for c in constraints)

    def closest(lower: FloatArray, upper: FloatArray) -> FloatArray:
        return project(target, lower, within_reach(target, lower, upper) if is_used_up else upper)

    lower, upper = _bounds(constraints, context)
    weights = closest(lower, upper)
    groups = [group for c in constraints for group in c.groups(target.size)]
    if all(low <= weights[members].sum() <= high for members, low, high in groups):
        return weights
    return closest(*with_groups(target, lower, upper, groups))


def _bounds(
    constraints: Sequence[Constraint], context: ConstraintContext
) -> tuple[FloatArray, FloatArray]:
    lower, upper = np.zeros(context.previous.size), np.ones(context.previous.size)
    for constraint in constraints:
        low, high = constraint.lower(context), constraint.upper(context)
        lower = lower if low is None else np.maximum(lower, low)
        upper = upper if high is None else np.minimum(upper, high)
    return np.minimum(lower, upper), upper


def _fractions(where: str, value: float | Sequence[float]) -> float | tuple[float, ...]:
    """Checks one fraction, or one per domain; returns a float or a tuple of floats."""
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):  # text, lists of several lengths
        array = np.array(np.nan)
    if array.ndim > 1 or not ((array >= 0) & (array <= 1)).all():
        raise ValueError(
            f"{where} must be in [0, 1], one number or one per domain, got {shown(value)}"
        )
    return float(array) if array.ndim == 0 else tuple(array.tolist())


def _shown(value: float | Sequence[float]) -> str:
    """One number or a list, with four digits each."""
    if isinstance(value, Sequence):
        return some(f"{number:.4g}" for number in value).replace("'", "")
    return f"{value:.4g}"


def _spread(where: str, value: float | tuple[float, ...], num_domains: int) -> FloatArray:
    if isinstance(value, tuple):
        check_one_per_domain(where, len(value), num_domains)
    return np.broadcast_to(np.asarray(value, dtype=np.float64), (num_domains,))
