"""The one exception for a bad value, and how several of them are gathered."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron.errors import UserError

from .secrets import redacted

_SHOWN_CHARACTERS = 200


class ConfigError(UserError):
    """Bad configuration; each message is one line: where, what is wrong, the value, what to do.

    ``key`` is the key that is to blame, for a catcher that knows where it was written.
    """

    def __init__(self, *messages: str, key: str | None = None) -> None:
        super().__init__(*messages)
        self.key = key


@dataclass(frozen=True)
class Origin:
    """Where a value was written: a file and its line from 1, or `the command line`."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


class IssueList:
    """Gathers everything that is wrong, so that the user sees all of it at once."""

    def __init__(self, origins: Mapping[str, Origin] | None = None) -> None:
        self._origins = dict(origins or {})
        self._messages: list[str] = []
        self._written: dict[str, str] = {}

    def read_as(self, written: str, key: str) -> None:
        """Lets messages about ``key``, or ``section.key``, name and place what the user wrote."""
        self._written[key] = written

    def is_read_as(self, key: str) -> bool:
        """Tells whether the user wrote ``key`` under another name."""
        return key in self._written

    def add(self, key: str, problem: str) -> None:
        """Notes what is wrong with ``key`` or ``section.key``, its value and what to do."""
        for new, old in reversed(self._written.items()):  # a new name may be an old one before
            problem = re.sub(rf"\b{re.escape(new)}\b", old, problem)
        while key in self._written:
            key = self._written[key]
        origin = self._origins.get(key.partition(".")[0])
        message = problem if origin is None else f"{origin}: {problem}"
        if message not in self._messages:
            self._messages.append(message)

    def add_error(self, error: ConfigError) -> None:
        """Notes an error that was raised, with the place of the key that it blames."""
        for message in error.messages:
            self.add(error.key or "", message)

    def as_error(self) -> ConfigError:
        """Returns one ``ConfigError`` with every message."""
        return ConfigError(*self._messages)

    def __bool__(self) -> bool:
        return bool(self._messages)

    def raise_if_any(self) -> None:
        """Raises one ``ConfigError`` with every message, if there is any."""
        if self._messages:
            raise self.as_error()


def shown(value: Any) -> str:
    """Returns ``value`` as a message holds it: on one line, not longer than that, no secrets."""
    try:
        text = repr(redacted(value) if isinstance(value, (dict, list)) else value)
    except ValueError:  # Python writes no whole number of more than 4300 digits
        text = "a number of thousands of digits"
    except RecursionError:
        text = "a value that contains itself"
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."
