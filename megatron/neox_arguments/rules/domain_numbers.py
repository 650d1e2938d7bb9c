"""Numbers per domain, and per pair of domains, that a mixing method cannot do without."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from odm.json_data import SchemaError, is_number, read_json
from odm.methods import Method

from ..coerce import parse_number
from ..errors import shown
from ..resolved import in_current_form
from .draft import Draft

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
    return {
        name: _Reader(draft, f"data_sampling_{name}", domains)(name, name in facts.required)
        if name in facts.settings and domains
        else ()
        for name in (*_LOSSES, _MATRIX)
    }


class _Reader:
    """Reads one of the keys; what is wrong becomes an issue of the draft."""

    def __init__(self, draft: Draft, key: str, domains: Sequence[str]) -> None:
        self._draft, self._key, self._domains = draft, key, domains

    def __call__(self, name: str, is_required: bool) -> tuple[Any, ...]:
        given = self._draft[self._key]
        if given is None:
            method = self._draft["data_sampling_method"]
            self._draft.require(
                not is_required,
                self._key,
                f"data_sampling_method {method} needs {self._key}: {_MUST[name]}",
            )
            return ()
        try:
            content, where = self._content(name, given)
            if name != _MATRIX:
                return self._numbers(_losses(content, self._domains), where, smallest=0.0)
            rows = zip(self._domains, self._entries(content, where), strict=True)
            return tuple(
                self._numbers(row, f"{where}: row {shown(domain)}", smallest=-math.inf)
                for domain, row in rows
            )
        except SchemaError as error:
            self._draft.issues.add(self._key, str(error))
            return ()

    def _content(self, name: str, given: Any) -> tuple[Any, str]:
        """What the key means, a mapping if it is right, and its place for messages."""
        if isinstance(given, Mapping):
            return given, self._key
        where = f"{self._key}: {shown(given)}"
        if not os.path.isfile(given):
            missing = f"{where}: there is no such file; name {_MUST[name]}"
            return self._of_checkpoint(name, missing), where
        try:
            return read_json(given, what="JSON file", advice=f"name {_MUST[name]}"), where
        except SchemaError as error:
            raise SchemaError(f"{self._key}: {error}") from None

    def _numbers(self, values: Any, where: str, *, smallest: float) -> tuple[float, ...]:
        numbers = [parse_number(value) for value in self._entries(values, where)]
        for domain, value in zip(self._domains, numbers, strict=True):
            if not is_number(value) or value < smallest:
                wanted = "a finite number" + (", at least 0" if smallest == 0 else "")
                raise SchemaError(
                    f"{where}: that of domain {shown(domain)} must be {wanted}, got {shown(value)}"
                )
        return tuple(map(float, numbers))

    def _entries(self, values: Any, where: str) -> list[Any]:
        """The entries of a section, in the order of the domains, each of which must have one."""
        known = ", ".join(self._domains)
        if not isinstance(values, Mapping):
            raise SchemaError(f"{where}: must have an entry per domain ({known})")
        by_name = {str(name): value for name, value in values.items()}
        missing = [domain for domain in self._domains if domain not in by_name]
        unknown = set(by_name).difference(self._domains)
        if missing:
            raise SchemaError(f"{where}: has no entry for domain {shown(missing[0])} of {known}")
        if unknown:
            raise SchemaError(f"{where}: names domain {shown(min(unknown))}, known: {known}")
        return [by_name[domain] for domain in self._domains]

    def _of_checkpoint(self, name: str, missing: str) -> Any:
        """The numbers with which the run that is continued was configured, by domain.

        Args:
            name: Field of `Mixing`.
            missing: What is wrong if there are none.
        """
        load = self._draft["load"]
        try:
            step = (Path(load) / "latest").read_text(encoding="utf-8").strip()
            sections = in_current_form(read_json(Path(load, step, "configs", "resolved.json")))
            domains, values = sections["data"]["train_domains"], sections["mixing"][name]
            if name == _MATRIX:
                values = [dict(zip(domains, row, strict=True)) for row in values]
            numbers = dict(zip(domains, values, strict=True))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise SchemaError(missing) from None
        self._draft.notes.append(
            f"{self._key}: the file is gone; the numbers of the checkpoint in {load} are used"
        )
        return numbers


def _losses(content: Any, domains: Sequence[str]) -> Any:
    """Losses by domain in a report of `evaluate.py`, which may have more; else the content."""
    if not isinstance(content, Mapping):
        return content
    found = content
    for name in _PARTS_OF_A_REPORT:
        part = content.get(name)
        if isinstance(part, Mapping) and isinstance(part.get("domains"), Mapping):
            entries = part["domains"]
            found = {
                domain: entries[domain].get("loss")
                for domain in domains
                if isinstance(entries.get(domain), Mapping)
            }
        if len(found) == len(domains):
            break
    return found
