"""A line every some seconds that says how far a long evaluation is, in a log file too."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["SECONDS_BETWEEN_LINES", "ProgressLines"]

SECONDS_BETWEEN_LINES = 10.0
"""What ends sooner prints no line."""


class ProgressLines:
    """Counts time from its making on.

    Args:
        say: Receives the lines; None keeps silent.
        label: What is being done, in front of each line.
        total: How much there is to do.
        unit: Of what, in the plural.
    """

    def __init__(self, say: Callable[[str], None] | None, label: str, *, total: int, unit: str):
        self._say = say
        self._label = label
        self._total = total
        self._unit = unit
        self._began_s = self._told_s = time.monotonic()

    def tell(self, done: int, *, now_at: str = "") -> None:
        """Says that ``done`` of the total are finished, if it is time for a line.

        Args:
            done: Number finished.
            now_at: What is being worked on.
        """
        now_s = time.monotonic()
        if self._say is None or now_s - self._told_s < SECONDS_BETWEEN_LINES:
            return
        self._told_s = now_s
        where = f", now {now_at}" if now_at else ""
        left_s = (now_s - self._began_s) * (self._total - done) / done if done else None
        left = "" if left_s is None else f", {left_s:.0f} s left"
        self._say(f" {self._label}: {done:,} of {self._total:,} {self._unit}{where}{left}")
