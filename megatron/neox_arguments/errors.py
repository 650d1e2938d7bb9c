"""The one exception for a bad value, and how several of them are gathered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_SHOWN_CHARACTERS = 200


class ConfigError(ValueError):
    """Bad configuration; each message is one line: where, what is wrong, the value, what to do."""

    def __init__(self, *messages: str) -> None:
        super().__init__(*messages)

    @property
    def messages(self) -> tuple[str, ...]:
        """The messages, one for each thing that is wrong."""
        return self.args

    def __str__(self) -> str:
        return "\n".join(str(message) for message in self.args)


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

    def add(self, key: str, problem: str) -> None:
        """Notes that ``key`` is wrong; ``problem`` says what, the value and what to do."""
        origin = self._origins.get(key)
        message = problem if origin is None else f"{origin}: {problem}"
        if message not in self._messages:
            self._messages.append(message)

    def __bool__(self) -> bool:
        return bool(self._messages)

    def raise_if_any(self) -> None:
        """Raises one ``ConfigError`` with every message, if there is any."""
        if self._messages:
            raise ConfigError(*self._messages)


def shown(value: Any) -> str:
    """Returns ``value`` as it stands in a message: on one line, and not longer than that."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no whole number of more than 4300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."
