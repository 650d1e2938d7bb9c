"""A configuration while it is being checked."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ..errors import IssueList
from ..fields import field_table
from ..purpose import Purpose

_Section = TypeVar("_Section")


@dataclass
class Draft:
    """All values by key, typed and under current names, and what was found so far."""

    values: Mapping[str, Any]
    given: frozenset[str]
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

    def require(self, condition: bool, key: str, problem: str) -> bool:
        """Adds ``problem`` unless ``condition`` holds; returns the condition."""
        if not condition:
            self.issues.add(key, problem)
        return condition

    def check_bounds(self) -> None:
        """Checks each value against the bounds of its declaration."""
        for key, declared in field_table().items():
            if declared.only_training and self.purpose is Purpose.READING:
                continue
            for bound in declared.bounds:
                if problem := bound.problem(key, self[key]):
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
