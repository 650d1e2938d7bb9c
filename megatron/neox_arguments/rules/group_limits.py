"""Limits on sums of weights, and on how far weights move per iteration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..coerce import parse_number
from ..errors import shown
from ..sections import DomainGroup
from .draft import Draft

GROUPS = "data_sampling_groups"
TRUST_REGION = "data_sampling_trust_region"
_MEASURES = {"kl": math.inf, "total_variation": 1.0}
"""Measures of a move -> the largest limit that has a meaning."""
_ROUNDING = 1e-9


def resolve_trust_region(draft: Draft) -> dict[str, float]:
    """Returns the measure and its limit; empty if none is set."""
    given = draft[TRUST_REGION]
    if given is None:
        return {}
    measure, value = next(iter(given.items()), ("", None))
    limit = parse_number(value)
    is_right = len(given) == 1 and measure in _MEASURES and _is_number(limit)
    if not is_right or not 0 < limit <= _MEASURES[measure]:
        draft.refuse(
            TRUST_REGION,
            "must be {kl: x} with x above 0 (nats) or {total_variation: x} with x in (0, 1], got "
            f"{shown(given)}",
        )
        return {}
    return {measure: float(limit)}


def resolve_groups(
    draft: Draft,
    domains: Sequence[str],
    limits: Mapping[str, Sequence[float]],
    initial_weights: Sequence[Sequence[float]],
) -> tuple[DomainGroup, ...]:
    """Returns the groups of domains with a limit on their sum, and checks that weights exist.

    Args:
        draft: The configuration.
        domains: Names of the training domains.
        limits: ``min_weights`` and ``max_weights`` of the domains; empty if they are not set.
        initial_weights: Weights before the limits, one per domain; several of a schedule.
    """
    given = draft[GROUPS]
    if given is None:
        return ()
    if not domains:
        draft.refuse(GROUPS, "needs named datasets; set use_named_train_datasets: true")
        return ()
    groups = [_group(draft, str(name), value, domains) for name, value in given.items()]
    found = tuple(group for group in groups if group is not None)
    if len(found) < len(groups):
        return ()
    owner: dict[str, str] = {}
    for group in found:
        for name in group.domains:
            first = owner.setdefault(name, group.name)
            draft.require(
                first == group.name,
                GROUPS,
                f"{GROUPS}: domain '{name}' is in {first} and in {group.name}; leave it in one",
            )
    if not draft.issues:
        lower = dict(zip(domains, limits["min_weights"] or (0.0,) * len(domains), strict=True))
        upper = dict(zip(domains, limits["max_weights"] or (1.0,) * len(domains), strict=True))
        for weights in initial_weights:
            drawn = {name for name, weight in zip(domains, weights, strict=True) if weight > 0}
            _check_sums(draft, found, lower, upper, drawn)
    return found


def _group(draft: Draft, name: str, value: Any, domains: Sequence[str]) -> DomainGroup | None:
    where, keys = f"{GROUPS}.{name}", {"domains", "min", "max"}
    if not isinstance(value, Mapping) or not {"domains"} < set(value) <= keys:
        draft.issues.add(
            GROUPS, f"{where} must have domains and min, max or both, got {shown(value)}"
        )
        return None
    names = value["domains"]
    names = [str(domain) for domain in names] if isinstance(names, list) else []
    unknown = [domain for domain in names if domain not in domains]
    if not names or unknown or len(set(names)) < len(names):
        what = f"names '{unknown[0]}'" if unknown else f"is {shown(value['domains'])}"
        draft.issues.add(
            GROUPS,
            f"{where}.domains {what}; list some of {', '.join(domains)}, each once",
        )
        return None
    low, high = parse_number(value.get("min", 0.0)), parse_number(value.get("max", 1.0))
    if not (_is_number(low) and _is_number(high) and 0 <= low <= high <= 1):
        draft.issues.add(
            GROUPS,
            f"{where} must have 0 <= min <= max <= 1, got min {shown(low)} and max {shown(high)}",
        )
        return None
    return DomainGroup(name=name, domains=tuple(names), minimum=float(low), maximum=float(high))


def _check_sums(
    draft: Draft,
    groups: Sequence[DomainGroup],
    lower: Mapping[str, float],
    upper: Mapping[str, float],
    drawn: set[str],
) -> None:
    """Checks that there are weights within the limits of domains and groups."""
    alone = set(lower) - {name for group in groups for name in group.domains}
    least = sum(lower[name] for name in alone)
    most = sum(upper[name] if name in drawn else lower[name] for name in alone)
    for group in groups:
        # a group without a drawn domain is lifted to its minimum all the same
        used = drawn & set(group.domains) or set(group.domains)
        low = sum(lower[name] for name in group.domains)
        high = sum(upper[name] if name in used else lower[name] for name in group.domains)
        draft.require(
            low <= group.maximum + _ROUNDING,
            GROUPS,
            f"{GROUPS}.{group.name}: data_sampling_min_weight of its domains sum to {low:.6g}, max "
            f"is {group.maximum:g}; lower the first or raise the second",
        )
        draft.require(
            high >= group.minimum - _ROUNDING,
            GROUPS,
            f"{GROUPS}.{group.name}: the largest weights of its domains that are drawn sum to "
            f"{high:.6g}, min is {group.minimum:g}; raise the first or lower the second",
        )
        least += max(low, group.minimum)
        most += min(high, group.maximum) if drawn & set(group.domains) else max(low, group.minimum)
    draft.require(
        least <= 1 + _ROUNDING,
        GROUPS,
        f"{GROUPS}: the smallest weights of groups and of the other domains sum to {least:.6g}, "
        "must be at most 1; lower them",
    )
    draft.require(
        most >= 1 - _ROUNDING,
        GROUPS,
        f"{GROUPS}: the largest weights of groups and of the other domains that are drawn sum to "
        f"{most:.6g}, must be at least 1; raise them",
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
