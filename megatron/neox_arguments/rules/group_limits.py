"""Limits on sums of weights, and on how far weights move per iteration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..declarations import above, in_range
from ..errors import shown
from ..sections import DomainGroup
from .by_domain import NEEDS_NAMES
from .draft import Draft

GROUPS = "data_sampling_groups"
TRUST_REGION = "data_sampling_trust_region"
_MEASURES = {"kl": (float, above(0)), "total_variation": (float, in_range("(0, 1]"))}
"""Measures of a move, and their limits."""
_SHARE = (float, in_range("[0, 1]"))
_GROUP = {"domains": list, "min": _SHARE, "max": _SHARE}
ROUNDING = 1e-9
"""Sums of decimal fractions are off by some units in the last place."""


def resolve_trust_region(draft: Draft) -> dict[str, float]:
    """Returns the measure and its limit; empty if none is set."""
    given = draft[TRUST_REGION]
    if given is not None and (len(given) != 1 or None in given.values()):
        form = f"{{{'} or {'.join(f'{name}: x' for name in _MEASURES)}}}"
        draft.refuse(TRUST_REGION, f"must be {form}, got {shown(given)}")
        return {}
    return draft.typed(TRUST_REGION, given, _MEASURES)


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
        draft.refuse(GROUPS, NEEDS_NAMES)
        return ()
    groups = [_group(draft, str(name), value, domains) for name, value in given.items()]
    found = tuple(group for group in groups if group is not None)
    if len(found) < len(groups):
        return ()
    owner: dict[str, str] = {}
    for group in found:
        for name in group.domains:
            first = owner.setdefault(name, group.name)
            if first != group.name:
                both = f"domain {name!r} is in {first} and in {group.name}; leave it in one"
                draft.issues.add(GROUPS, f"{GROUPS}: {both}")
    if not draft.issues:
        lower = dict(zip(domains, limits["min_weights"] or (0.0,) * len(domains), strict=True))
        upper = dict(zip(domains, limits["max_weights"] or (1.0,) * len(domains), strict=True))
        for weights in initial_weights:
            drawn = {name for name, weight in zip(domains, weights, strict=True) if weight > 0}
            _check_sums(draft, found, lower, upper, drawn)
    return found


def _group(draft: Draft, name: str, value: Any, domains: Sequence[str]) -> DomainGroup | None:
    where = f"{GROUPS}.{name}"
    written = draft.typed_value(where, {} if value is None else value, dict[str, Any])
    if written is None:
        return None
    section = draft.typed(where, written, _GROUP)
    names = [str(domain) for domain in section.get("domains", [])]
    low, high = section.get("min", 0.0), section.get("max", 1.0)
    unknown = [domain for domain in names if domain not in domains]
    if unknown or not names or len(set(names)) < len(names):
        what = f"names {unknown[0]!r}" if unknown else f"is {shown(names)}"
        draft.refuse(f"{where}.domains", f"{what}; list some of {', '.join(domains)}, each once")
    elif written.keys() <= {"domains"}:
        draft.refuse(where, f"must have min, max or both, got {shown(value)}")
    elif low > high:
        draft.refuse(where, f"must have 0 <= min <= max <= 1, got min {low:g} and max {high:g}")
    else:
        return DomainGroup(name=name, domains=tuple(names), minimum=low, maximum=high)
    return None


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
        where, own_low, own_high = f"{GROUPS}.{group.name}", group.minimum, group.maximum
        if low > own_high + ROUNDING:
            sums = f"data_sampling_min_weight of its domains sum to {low:.6g}, max is {own_high:g}"
            draft.issues.add(where, f"{where}: {sums}; lower the first or raise the second")
        if high < own_low - ROUNDING:
            sums = f"its domains that are drawn sum to {high:.6g}, min is {own_low:g}"
            advice = "raise the first or lower the second"
            draft.issues.add(where, f"{where}: the largest weights of {sums}; {advice}")
        least += max(low, own_low)
        most += min(high, own_high) if drawn & set(group.domains) else max(low, own_low)
    both = "weights of groups and of the other domains"
    if least > 1 + ROUNDING:
        sums = f"the smallest {both} sum to {least:.6g}"
        draft.issues.add(GROUPS, f"{GROUPS}: {sums}, must be at most 1; lower them")
    if most < 1 - ROUNDING:
        sums = f"the largest {both} that are drawn sum to {most:.6g}"
        draft.issues.add(GROUPS, f"{GROUPS}: {sums}, must be at least 1; raise them")
