"""How large a configuration may be, in one place, and what its values may be.

Real configurations are far below these bounds. They keep a file of some bytes from taking minutes
or filling the memory: aliases of aliases, brackets in brackets, numbers of thousands of digits.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from .errors import ConfigError, shown

LARGEST_FILE_BYTES = 2**19
"""Size of a configuration file, and of a hostfile."""

MOST_LINES = 20_000
"""Lines and commas of a configuration file, each of which begins a value: YAML is read slowly."""

DEEPEST_NESTING = 50
"""Lists and sections inside each other."""

MOST_VALUES = 100_000
"""Values of one file; what an alias repeats counts each time."""

MOST_KEYS = 1000
"""Keys of one file; there are some 400."""

LONGEST_NUMBER = 100
"""Characters of a number."""

LARGEST_WHOLE_NUMBER = 2**63 - 1
"""Whole numbers end up in 64 bits, in torch or in a file."""

MOST_PROCESSES = 2**20
"""Processes of a run."""


def check_plain(value: Any, where: str) -> None:
    """Checks that ``value`` is what YAML and JSON share, and within the bounds.

    Args:
        value: From a file or from Python, of any kind.
        where: Begins the message.

    Raises:
        ConfigError: For other objects, numbers that are not finite or do not fit 64 bits, text
            that UTF-8 cannot hold or that holds NUL, and for too many or too deeply nested values;
            a list that holds itself is nested without end.
    """
    count = 0
    pending = [(value, where, 0)]
    while pending:
        value, where, depth = pending.pop()
        count += 1
        if depth > DEEPEST_NESTING:
            raise ConfigError(
                f"{where} is nested more than {DEEPEST_NESTING} deep; make it flatter"
            )
        if count > MOST_VALUES:
            raise ConfigError(f"{where} contains more than {MOST_VALUES} values; shorten it")
        if isinstance(value, dict):
            names = set[Any]()
            for key, item in value.items():
                if not isinstance(key, (str, int, float)):  # a bool is an int
                    raise ConfigError(f"{where}: contains the key {shown(key)}; put it in quotes")
                if problem := _scalar_problem(key):
                    raise ConfigError(f"{where}: a key {problem}")
                if not names.isdisjoint(key_names(key)):
                    problem = f"{shown(key)} and a key before it are one key in JSON; keep one"
                    raise ConfigError(f"{where}: {problem}")
                names |= key_names(key)
                pending.append((item, f"{where}.{shown_key(str(key))}", depth + 1))
        elif isinstance(value, (list, tuple)):
            pending += [(item, where, depth + 1) for item in value]
        elif problem := _scalar_problem(value):
            raise ConfigError(f"{where} {problem}")


def key_names(key: Any) -> set[Any]:
    """Returns what may stand for a key: its value, and its text in Python and in JSON.

    Two keys that share one of these are the same to some reader: 1, 1.0 and true, or 1 and "1".
    """
    return {key} if isinstance(key, str) else {key, str(key), json.dumps(key, default=str)}


def shown_key(key: str) -> str:
    """Returns a key as it appears in a message: bare, or quoted where it is no ordinary one."""
    return key if re.fullmatch(r"[\w.-]{1,100}", key) else shown(key)


def _scalar_problem(value: Any) -> str | None:
    """Returns what is wrong with a value that is neither a list nor a section, or None."""
    if isinstance(value, str):
        if "\0" in value:
            return "contains the character NUL; remove it"
        if not value.isascii() and not _is_utf8(value):
            return "contains half a character (a surrogate); write it whole"
    elif isinstance(value, float):
        if not math.isfinite(value):
            return f"contains {value}; write a finite number"
    elif isinstance(value, int):
        if abs(value) > LARGEST_WHOLE_NUMBER:
            return f"contains a number above {LARGEST_WHOLE_NUMBER}; lower it"
    elif value is not None:
        return f"contains {shown(value)}, a {type(value).__name__}; put it in quotes"
    return None


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
