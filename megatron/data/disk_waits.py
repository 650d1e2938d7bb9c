"""Notices that reads of memory maps wait for a disk, so that the next reads are asked for early.

A page of a map that is not in memory is read when it is touched: one after the other, and each time
with megabytes around it, which random samples do not need. The system reads many places at the same
time, and only these, if it is told them before. That costs time too, so nothing is told while all
data are in memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

__all__ = ["DiskWaits"]

STEPS_AFTER_A_WAIT = 1000
"""Steps for which reads are asked for after one had to wait; one step in so many may wait then."""


class DiskWaits:
    """Counts the steps since a read of this thread had to wait for a disk."""

    def __init__(self) -> None:
        self._steps_left = 0

    def next_step(self) -> bool:
        """Begins a step; returns whether its reads should be asked for before."""
        self._steps_left = max(0, self._steps_left - 1)
        return self._steps_left > 0

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Watches the reads inside the block."""
        before = major_faults()
        yield
        if major_faults() > before:
            self._steps_left = STEPS_AFTER_A_WAIT


def major_faults() -> int:
    """Pages for which this thread has waited for a disk; 0 where the system does not tell."""
    who = getattr(resource, "RUSAGE_THREAD", None)
    return 0 if who is None else resource.getrusage(who).ru_majflt
