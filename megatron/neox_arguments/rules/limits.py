"""Limits on the weights of domains: smallest and largest weight, passes over a domain, groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..declarations import Bound, above, in_range
from .by_domain import NEEDS_NAMES, by_domain
from .draft import Draft
from .group_limits import ROUNDING, resolve_groups, resolve_trust_region

_MINIMUM, _MAXIMUM = "data_sampling_min_weight", "data_sampling_max_weight"


def resolve_limits(
    draft: Draft, domains: Sequence[str], initial_weights: Sequence[Sequence[float]]
) -> dict[str, Any]:
    """Returns fields of `Mixing` for all limits; those of a key that is not set are empty.

    Args:
        draft: The configuration.
        domains: Names of the training domains.
        initial_weights: Weights before the limits, one per domain; several of a schedule.

    Whether `data_sampling_max_epochs` leaves enough samples for the run is known when the data are
    open.
    """
    minimum = _limits(draft, domains, _MINIMUM, in_range("[0, 1]"), default=0.0)
    maximum = _limits(draft, domains, _MAXIMUM, in_range("[0, 1]"), default=1.0)
    epochs = _limits(draft, domains, "data_sampling_max_epochs", above(0), default=None)
    if (minimum or maximum) and not draft.issues:
        for weights in initial_weights:
            _check_sums(draft, domains, minimum, maximum, weights)
    found = {"min_weights": minimum, "max_weights": maximum, "max_epochs": epochs}
    groups = resolve_groups(draft, domains, found, initial_weights)
    return {**found, "groups": groups, "trust_region": resolve_trust_region(draft)}


def _limits(
    draft: Draft, domains: Sequence[str], key: str, bound: Bound, *, default: float | None
) -> tuple[Any, ...]:
    """One limit per domain, from a number for all of them or a section ``domain: number``."""
    given = draft[key]
    if given is None:
        return ()
    if not domains:
        draft.refuse(key, NEEDS_NAMES)
        return ()
    if isinstance(given, Mapping):
        return by_domain(draft, key, given, domains, (float, bound), default=default) or ()
    number = draft.typed_value(key, given, (float, bound))
    return () if number is None else (number,) * len(domains)


def _check_sums(
    draft: Draft,
    domains: Sequence[str],
    minimum: Sequence[float],
    maximum: Sequence[float],
    initial_weights: Sequence[float],
) -> None:
    """Checks that there are weights within the limits."""
    if sum(minimum) > 1 + ROUNDING:
        total = f"of {len(domains)} domains sum to {sum(minimum):.6g}"
        draft.issues.add(
            _MINIMUM, f"{_MINIMUM}: the smallest weights {total}, must be at most 1; lower them"
        )
    lower = minimum or (0.0,) * len(domains)
    upper = maximum or (1.0,) * len(domains)
    for name, low, high in zip(domains, lower, upper, strict=True):
        if low > high:
            both = f"of {name} is {low:g}, {_MAXIMUM} is {high:g}"
            draft.refuse(_MINIMUM, f"{both}; lower the first or raise the second")
    # a domain whose initial share is 0 gets what the floor says
    total_weight = sum(initial_weights)
    pairs = zip(initial_weights, lower, upper, strict=True)
    reachable = sum(high if weight / total_weight > 0 else low for weight, low, high in pairs)
    if maximum and reachable < 1 - ROUNDING:
        total = f"of the domains that are drawn sum to {reachable:.6g}"
        draft.issues.add(
            _MAXIMUM, f"{_MAXIMUM}: the largest weights {total}, must be at least 1; raise them"
        )
