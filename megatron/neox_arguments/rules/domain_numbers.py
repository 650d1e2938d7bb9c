"""Numbers per domain, and per pair of domains, that a mixing method cannot do without."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from odm.json_data import SchemaError, read_json
from odm.methods import Method

from ..declarations import at_least
from ..errors import shown
from .by_domain import by_domain
from .draft import Draft
from .saved_run import saved_sections

_LOSSES = ("reference_losses", "target_losses")
_MATRIX = "transfer_matrix"
_PARTS_OF_A_REPORT = ("validation", "test", "datasets")
_MUST = {
    **dict.fromkeys(_LOSSES, "a JSON file {domain: nats}, or a report of evaluate.py"),
    _MATRIX: "a JSON file {domain: {domain: number}}",
}


def resolve_domain_numbers(
    draft: Draft, domains: Sequence[str], facts: Method
) -> dict[str, tuple[Any, ...]]:
    """Returns fields of `Mixing` in the order of the domains; empty where the method has no use.

    A file that is gone does not keep a run from resuming: the checkpoint in `load` has its numbers.

    Args:
        draft: The configuration.
        domains: Names of the training domains.
        facts: Of the mixing method.
    """
    found: dict[str, tuple[Any, ...]] = dict.fromkeys((*_LOSSES, _MATRIX), ())
    for name in found:
        if name not in facts.settings or not domains:
            continue
        key = f"data_sampling_{name}"
        given = draft[key]
        if given is not None:
            found[name] = _numbers(draft, name, key, given, domains) or ()
        elif name in facts.required:
            method = draft["data_sampling_method"]
            draft.issues.add(key, f"data_sampling_method {method} needs {key}: {_MUST[name]}")
    return found


def _numbers(
    draft: Draft, name: str, key: str, given: Any, domains: Sequence[str]
) -> tuple[Any, ...] | None:
    """What a key means: its section, or what its file contains; None after it was refused."""
    where, content = key, given
    if not isinstance(given, Mapping):
        where = f"{key}: {shown(given)}"
        try:
            content = _of_file(draft, name, key, given)
        except SchemaError as error:
            draft.issues.add(key, f"{key}: {error}")
            return None
    if name != _MATRIX:
        losses = _losses(content, domains)
        return by_domain(draft, key, losses, domains, (float, at_least(0)), where=where)
    rows = by_domain(draft, key, content, domains, dict[str, Any], where=where) or ()
    matrix = [
        by_domain(draft, key, row, domains, float, where=f"{where}: row {shown(domain)}")
        for domain, row in zip(domains, rows, strict=False)
    ]
    return None if None in matrix else tuple(matrix)


def _of_file(draft: Draft, name: str, key: str, path: str) -> Any:
    """The content of a file, or without it what the checkpoint of the run that is continued has."""
    if os.path.isfile(path):
        return read_json(path, what="JSON file", advice=f"name {_MUST[name]}")
    sections = saved_sections(draft)
    try:
        domains, values = sections["data"]["train_domains"], sections["mixing"][name]
        if name == _MATRIX:
            values = [dict(zip(domains, row, strict=True)) for row in values]
        numbers = dict(zip(domains, values, strict=True))
    except (KeyError, TypeError, ValueError):
        missing = f"{shown(path)}: there is no such file; name {_MUST[name]}"
        raise SchemaError(missing) from None
    load = draft["load"]
    draft.notes.append(
        f"{key}: the file is missing; its numbers are those of the checkpoint in {load}"
    )
    return numbers


def _losses(content: Any, domains: Sequence[str]) -> Any:
    """Losses by domain in a report of `evaluate.py`, which may have more; else the content."""
    if not isinstance(content, Mapping):
        return content
    found = content
    for name in _PARTS_OF_A_REPORT:
        part = content.get(name)
        if not isinstance(part, Mapping) or not isinstance(part.get("domains"), Mapping):
            continue
        entries = part["domains"]
        found = {
            domain: entries[domain].get("loss")
            for domain in domains
            if isinstance(entries.get(domain), Mapping)
        }
        if len(found) == len(domains):
            break
    return found
