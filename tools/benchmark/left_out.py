"""Special paths of float32 on a CPU, which a comparison can take out for a while."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from statistics import median
from time import process_time

__all__ = ["PATHS", "processor_seconds_without", "ratios", "without"]

PATHS = {
    "oneDNN": ("megatron.model.cpu.matrix_products", "_ROWS_FOR_MKL", 0),
    "frozen": ("megatron.generation.batch", "_STEPS_WORTH_FREEZING", math.inf),
}
"""Path -> a name of a module, and the value with which the module never takes the path."""


@contextmanager
def without(path: str) -> Iterator[None]:
    """Takes a path of `PATHS` out of this process for the block's time."""
    module, name, value = PATHS[path]
    owner = importlib.import_module(module)
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def processor_seconds_without(action: Callable[[], object], path: str | None) -> float:
    """Calls ``action``; returns the processor time of all threads: others cannot lengthen it much.

    Args:
        action: Takes no arguments.
        path: Of `PATHS`, taken out; None leaves all in.
    """
    with nullcontext() if path is None else without(path):
        start = process_time()
        action()
        return process_time() - start


def ratios(seconds: dict[str | None, list[float]]) -> list[str]:
    """A line per path: its time without the path over the whole one's, above 1 where it wins."""
    whole = seconds[None]
    return [
        f"  without {path:<7} takes {median(a / b for a, b in zip(taken, whole, strict=True)):.2f} "
        f"(median), {min(taken) / min(whole):.2f} (best against best) of {min(whole):.2f} s"
        for path, taken in seconds.items()
        if path is not None
    ]
