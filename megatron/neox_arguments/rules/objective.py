"""What online data mixing is to make small."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..coerce import parse_number
from ..errors import shown
from .draft import Draft

OBJECTIVE = "data_sampling_objective"
_PERPLEXITY_SHARE = 0.5


def resolve_objective(draft: Draft, domains: Sequence[str]) -> dict[str, Any]:
    """Returns the fields of `Mixing` that ``data_sampling_objective`` decides."""
    given = draft[OBJECTIVE] or {}
    for name in given:
        draft.require(
            name in ("perplexity", "weights"),
            OBJECTIVE,
            f"{OBJECTIVE} has perplexity and weights, not {shown(name)}",
        )
    share = parse_number(given.get("perplexity", _PERPLEXITY_SHARE))
    draft.require(
        _is_number(share) and 0 <= share <= 1,
        OBJECTIVE,
        f"{OBJECTIVE}.perplexity must be a number in [0, 1], got {shown(share)}",
    )
    return {"perplexity_share": share, "objective_weights": _weights(draft, given, domains)}


def _weights(draft: Draft, given: Mapping[str, Any], domains: Sequence[str]) -> tuple[float, ...]:
    """One number per domain, 1 for those that are not named; empty if none is."""
    section = given.get("weights") or {}
    if not isinstance(section, Mapping):
        draft.issues.add(
            OBJECTIVE,
            f"{OBJECTIVE}.weights must be a section of domain: number, got {shown(section)}",
        )
        return ()
    values = {str(name): parse_number(value) for name, value in section.items()}
    for name, value in values.items():
        known = ", ".join(domains)
        draft.require(
            name in domains,
            OBJECTIVE,
            f"{OBJECTIVE}.weights names domain {shown(name)}; the domains are {known}",
        )
        draft.require(
            _is_number(value) and value >= 0,
            OBJECTIVE,
            f"{OBJECTIVE}.weights.{name} must be a number of at least 0, got {shown(value)}",
        )
    weights = tuple(values.get(name, 1.0) for name in domains)
    draft.require(
        not values or any(weights),
        OBJECTIVE,
        f"{OBJECTIVE}.weights: all {len(weights)} are 0; at least one must be positive",
    )
    return weights if values else ()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
