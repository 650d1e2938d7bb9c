"""How messages write values and numbers of things."""

from __future__ import annotations

import reprlib
from typing import Any

LARGEST_SHOWN = 80
"""Characters of a value in a message."""


def shown(value: Any) -> str:
    """A value on one line, shortened if it is long."""
    try:
        text = reprlib.repr(value)
    except ValueError:  # Python prints no number with more than 4300 digits
        return "a number with thousands of digits"
    if "\n" in text:  # a table of numpy
        text = " ".join(text.split())
    return text if len(text) <= LARGEST_SHOWN else f"{text[:LARGEST_SHOWN]}..."


def counted(number: int, singular: str, plural: str = "") -> str:
    """``1 sample``, ``2 samples``; ``plural`` is for words with another ending."""
    return f"{number} {singular if number == 1 else plural or f'{singular}s'}"
