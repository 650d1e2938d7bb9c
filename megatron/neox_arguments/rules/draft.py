"""A configuration while it is being checked."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from megatron.errors import name_hint

from ..coerce import Mismatch, coerce, describe
from ..errors import IssueList, shown
from ..fields import field_table
from ..purpose import Purpose

_Section = TypeVar("_Section")


@dataclass
class Draft:
    """All values by key, typed and under current names, and what was found so far."""

    values: dict[str, Any]
    given: set[str]
    issues: IssueList
    notes: list[str] = field(default_factory=list)
    purpose: Purpose = Purpose.TRAINING
    knows_processes: bool = True
    """Whether the number of processes is the user's: equations with a wrong one tell nothing."""

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def is_set(self, key: str) -> bool:
        """Tells whether the user gave ``key`` a value other than null."""
        return key in self.given and self.values[key] is not None

    @contextmanager
    def training_rules(self) -> Iterator[None]:
        """Holds rules that only training needs: a program that reads is told nothing by them."""
        if self.purpose is Purpose.TRAINING:
            yield
            return
        kept = self.issues, self.notes
        self.issues, self.notes = IssueList(), []
        try:
            yield
        finally:
            self.issues, self.notes = kept

    def refuse(self, key: str, problem: str) -> None:
        """Adds a message that begins with ``key`` and goes on with what is wrong with it."""
        self.issues.add(key, f"{key} {problem}")

    def keep_one(self, first: str, second: str) -> None:
        """Refuses two keys that say the same in different ways, if both are set."""
        if all(self.is_set(key) and self[key] is not False for key in (first, second)):
            self.refuse(first, f"and {second} are both set; keep one")

    def note_no_effect(self, key: str, reason: str) -> None:
        """Notes that ``key`` changes nothing in this run, and why."""
        self.notes.append(f"'{key}' has no effect: {reason}")

    def typed(
        self, name: str, written: Mapping[Any, Any] | None, kinds: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Returns the values of a section inside the configuration by key, with their types.

        Refuses unknown keys, other types and broken bounds, and leaves these values out; null too.

        Args:
            name: ``section``, or ``section.key``.
            written: The section as the user wrote it.
            kinds: A type for each known key, or a pair of it and a ``Bound``.
        """
        values = {}
        for key, value in (written or {}).items():
            if key not in kinds:
                self.issues.add(name, f"unknown key '{name}.{key}'; {name_hint(key, kinds)}")
            elif (typed := self.typed_value(f"{name}.{key}", value, kinds[key])) is not None:
                values[key] = typed
        return values

    def typed_value(self, name: str, value: Any, wanted: Any, *, key: str = "") -> Any:
        """Returns the value of ``section.key`` with its type; None for null and what is refused.

        ``key`` is the one to blame, if ``name`` does not begin with it.
        """
        kind, bound = wanted if isinstance(wanted, tuple) else (wanted, None)
        try:
            typed = coerce(value, kind)
            is_good = typed is None or bound is None or bound.holds(typed)
        except Mismatch:
            is_good = False
        if is_good:
            return typed
        words = f"{describe(kind)}, {bound.words}" if bound else describe(kind)
        self.issues.add(key or name, f"{name} must be {words}, got {shown(value)}")
        return None

    def check_bounds(self) -> None:
        """Checks each value against the bounds of its declaration."""
        for key, declared in field_table().items():
            if declared.only_training and self.purpose is Purpose.READING:
                continue
            for problem in declared.problems(self[key]):
                self.issues.add(key, problem)

    def section(self, kind: type[_Section], /, **answers: Any) -> _Section:
        """Makes a section: ``answers`` of a rule, and the written values of all other fields."""
        name = kind.__name__.lower()
        written = {
            declared.answer: copy.deepcopy(self[key])
            for key, declared in field_table().items()
            if declared.section == name and declared.answer and not declared.is_computed
        }
        return kind(**{**written, **answers})
