"""How a key is declared: its name, its written form and its bounds, in ``Annotated``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .errors import shown

SAME = object()
"""The written form of a field is that of the answer."""

ONLY_TRAINING = "only for training"
"""A program that only reads a model is not refused for this key."""


@dataclass(frozen=True)
class Key:
    """The key of a field: its name, and its type and default where the answer has another type."""

    name: str
    type: Any = SAME
    default: Any = None


@dataclass(frozen=True)
class Bound:
    """What the value of a key must be, in words and as a test; and advice for messages."""

    words: str
    holds: Callable[[Any], bool]
    advice: str = ""

    def problem(self, key: str, value: Any) -> str | None:
        """Returns what is wrong with the value of ``key``, or None."""
        if value is None or self.holds(value):
            return None
        advice = f"; {self.advice}" if self.advice else ""
        return f"{key} must be {self.words}, got {shown(value)}{advice}"


def each(words: str, holds: Callable[[Any], Any]) -> Bound:
    """Each item of a list."""
    return Bound(words, lambda items: all(map(holds, items)))


def at_least(low: float, advice: str = "") -> Bound:
    """``low`` or more."""
    return Bound(f"at least {low}", lambda value: value >= low, advice)


def above(low: float, advice: str = "") -> Bound:
    """More than ``low``."""
    return Bound(f"above {low}", lambda value: value > low, advice)


def at_most(high: float) -> Bound:
    """``high`` or less."""
    return Bound(f"at most {high}", lambda value: value <= high)


def between(low: int, high: int, advice: str = "") -> Bound:
    """From ``low`` to ``high``, both included."""
    return Bound(f"{low} to {high}", lambda value: low <= value <= high, advice)


def in_range(interval: str, advice: str = "") -> Bound:
    """In an interval as mathematics writes it, ``[0, 1)``."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    with_low, with_high = interval[0] == "[", interval[-1] == "]"
    return Bound(
        f"in {interval}",
        lambda value: (
            low <= value <= high and (with_low or value != low) and (with_high or value != high)
        ),
        advice,
    )
