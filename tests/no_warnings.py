"""Code that must not warn."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["no_warnings"]


@contextmanager
def no_warnings() -> Iterator[None]:
    """Turns each warning into an error, but not those about files that other tests left open.

    Python gives these when it collects its garbage, which may happen in any test.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ResourceWarning)
        yield
