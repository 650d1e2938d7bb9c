"""Alternatives of a comparison that take turns, so that a busy machine slows them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

__all__ = ["Clock", "interleaved_seconds", "seconds_of"]


Clock = Callable[[], float]
"""Seconds: ``time.perf_counter``, or ``time.process_time``, which stops while others run."""


def seconds_of(action: Callable[[], object], clock: Clock = time.perf_counter) -> float:
    """Calls ``action``; returns the seconds that it took."""
    start = clock()
    action()
    return clock() - start


def interleaved_seconds(
    ways: Mapping[str, Callable[[], object]], *, rounds: int
) -> dict[str, list[float]]:
    """Seconds of each way in each round, after a round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            taken = seconds_of(way)
            if number:
                seconds[name].append(taken)
    return seconds
