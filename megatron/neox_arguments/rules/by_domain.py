"""Values by domain, as a section of the configuration or of a file has them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..coerce import describe
from ..errors import shown
from .draft import Draft

NEEDS_NAMES = "needs named datasets; set use_named_train_datasets: true"

REQUIRED = object()
"""In the place of a default: each domain must have a value."""


def wrong_sum(weights: Collection[float]) -> str | None:
    """What is wrong with the sum of weights that are finite and at least 0; None if nothing is.

    The problem and what to do continue a message that begins with a plural, such as "the weights".
    """
    if not any(weights):
        return "are all 0; give one of them a positive number"
    if not sum(weights) < math.inf:
        largest = max(weights)
        return f"have a sum too large for a float, the largest is {largest:g}; make them smaller"
    return None


def by_domain(
    draft: Draft,
    key: str,
    written: Any,
    domains: Sequence[str],
    wanted: Any,
    *,
    where: str = "",
    default: Any = REQUIRED,
) -> tuple[Any, ...] | None:
    """Returns the values of a section ``domain: value`` in the order of the domains.

    Args:
        draft: The configuration.
        key: The key that is to blame.
        written: The section as the user wrote it.
        domains: Names of the domains; the section may name no other ones.
        wanted: A type, or a pair of it and a ``Bound``.
        where: Place of the section for messages, if it is not ``key``.
        default: The value of a domain that the section does not name, or has as null.

    Returns:
        One value per domain; None after something was refused.
    """
    where, known = where or key, ", ".join(domains)
    if not isinstance(written, Mapping):
        kind = wanted[0] if isinstance(wanted, tuple) else wanted
        must = f"must be a section of domain: {describe(kind)}, got {shown(written)}"
        draft.issues.add(key, f"{where} {must}")
        return None
    by_name = {str(name): value for name, value in written.items()}
    missing = [name for name in domains if by_name.get(name) is None and default is REQUIRED]
    problems = [f"has no value for domain {shown(name)}" for name in missing]
    problems += [f"names domain {shown(name)}" for name in by_name if name not in domains]
    if problems:
        draft.issues.add(key, f"{where} {problems[0]}; the domains are {known}")
        return None
    values, is_good = list[Any](), True
    for name in domains:
        value = by_name.get(name)
        typed = draft.typed_value(f"{where}.{name}", value, wanted, key=key)
        is_good &= typed is not None or value is None
        values.append(default if typed is None else typed)
    return tuple(values) if is_good else None
