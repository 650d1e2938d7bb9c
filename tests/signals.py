"""Signals as a terminal's programs find them, however the tests themselves were started.

A shell's background job and ``nohup`` leave SIGINT and SIGHUP ignored, and children inherit that.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

_NUMBERS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
)


def take_defaults() -> None:
    """Undoes the ignoring; for ``preexec_fn`` of a child that the test sends signals to."""
    for number in _NUMBERS:
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def defaults() -> Iterator[None]:
    """The same for this process, for code under test that leaves ignored signals ignored."""
    before = {number: signal.getsignal(number) for number in _NUMBERS}
    take_defaults()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
