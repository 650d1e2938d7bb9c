"""Limits on the weights of domains: smallest and largest weight, passes over a domain, groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..coerce import parse_number
from .draft import Draft
from .group_limits import resolve_groups, resolve_trust_region

_ROUNDING = 1e-9
"""Sums of decimal fractions are off by some units in the last place."""


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

    def is_share(value: float) -> bool:
        return 0 <= value <= 1

    read = _Reader(draft, domains)
    minimum = read("data_sampling_min_weight", 0.0, is_share, "in [0, 1]")
    maximum = read("data_sampling_max_weight", 1.0, is_share, "in [0, 1]")
    epochs = read("data_sampling_max_epochs", None, lambda value: value > 0, "above 0")
    if (minimum or maximum) and not draft.issues:
        for weights in initial_weights:
            _check_sums(draft, domains, minimum, maximum, weights)
    found = {"min_weights": minimum, "max_weights": maximum, "max_epochs": epochs}
    groups = resolve_groups(draft, domains, found, initial_weights)
    return {**found, "groups": groups, "trust_region": resolve_trust_region(draft)}


class _Reader:
    """Reads a number for all domains or a section ``domain: number``."""

    def __init__(self, draft: Draft, domains: Sequence[str]) -> None:
        self._draft = draft
        self._domains = domains

    def __call__(
        self, key: str, missing: Any, is_good: Callable[[float], bool], wanted: str
    ) -> tuple[Any, ...]:
        given = self._draft[key]
        if given is None:
            return ()
        if not self._domains:
            self._draft.refuse(key, "needs named datasets; set use_named_train_datasets: true")
            return ()
        if not isinstance(given, Mapping):
            self._check(key, key, given, is_good, wanted)
            return (given,) * len(self._domains)
        values = {str(name): parse_number(value) for name, value in given.items()}
        for name, value in values.items():
            if name not in self._domains:
                known = ", ".join(self._domains)
                self._draft.refuse(key, f"names domain '{name}'; the domains are {known}")
            else:
                self._check(key, f"{key}.{name}", value, is_good, wanted)
        return tuple(values.get(name, missing) for name in self._domains)

    def _check(
        self, key: str, where: str, value: Any, is_good: Callable[[float], bool], wanted: str
    ) -> None:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        self._draft.require(
            is_number and math.isfinite(value) and is_good(value),
            key,
            f"{where} must be a number {wanted}, got {value!r}",
        )


def _check_sums(
    draft: Draft,
    domains: Sequence[str],
    minimum: Sequence[float],
    maximum: Sequence[float],
    initial_weights: Sequence[float],
) -> None:
    """Checks that there are weights within the limits."""
    draft.require(
        sum(minimum) <= 1 + _ROUNDING,
        "data_sampling_min_weight",
        f"data_sampling_min_weight: the smallest weights of {len(domains)} domains sum to "
        f"{sum(minimum):.6g}, must be at most 1; lower them",
    )
    lower = minimum or (0.0,) * len(domains)
    upper = maximum or (1.0,) * len(domains)
    for name, low, high in zip(domains, lower, upper, strict=True):
        draft.require(
            low <= high,
            "data_sampling_min_weight",
            f"data_sampling_min_weight of {name} is {low:g}, data_sampling_max_weight is "
            f"{high:g}; lower the first or raise the second",
        )
    # a domain whose initial weight is 0 gets what the floor says
    pairs = zip(initial_weights, lower, upper, strict=True)
    reachable = sum(high if weight > 0 else low for weight, low, high in pairs)
    draft.require(
        not maximum or reachable >= 1 - _ROUNDING,
        "data_sampling_max_weight",
        f"data_sampling_max_weight: the largest weights of the domains that are drawn sum to "
        f"{reachable:.6g}, must be at least 1; raise them",
    )
