"""Progress of a long evaluation: a line every few seconds, also in a log file."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["SECONDS_BETWEEN_LINES", "ProgressLines"]

SECONDS_BETWEEN_LINES = 10.0
"""Work that ends sooner prints no line."""


class ProgressLines:
    """Prints progress lines; time counts from its creation.

    Args:
        say: Prints a line; None prints nothing.
        label: What is being done; each line begins with it.
        total: Number of units to do.
        unit: Name of the units, in the plural.
    """

    def __init__(self, say: Callable[[str], None] | None, label: str, *, total: int, unit: str):
        self._say = say
        self._label = label
        self._total = total
        self._unit = unit
        self._began_s = self._told_s = time.monotonic()

    def tell(self, done: int, *, now_at: str = "") -> None:
        """Prints that ``done`` of the total are finished, if it is time for a line.

        Args:
            done: Number of finished units.
            now_at: What is being done now.
        """
        now_s = time.monotonic()
        if self._say is None or now_s - self._told_s < SECONDS_BETWEEN_LINES:
            return
        self._told_s = now_s
        where = f", now {now_at}" if now_at else ""
        left_s = (now_s - self._began_s) * (self._total - done) / done if done else None
        left = "" if left_s is None else f", {left_s:.0f} s left"
        self._say(f" {self._label}: {done:,} of {self._total:,} {self._unit}{where}{left}")
