"""Paths on the command lines of the programs and of the tools."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["not_empty", "path_argument"]

_EMPTY = "is empty, as an unset variable leaves it; give a name (. is the working folder)"


def not_empty(text: str) -> str:
    """Takes a word of the command line that names something; for `type=` of argparse.

    An empty one is what is left of a shell variable that is not set. As a path it would be the
    working folder, which would then be read, uploaded or written into.

    Raises:
        argparse.ArgumentTypeError: If the word is empty.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError(_EMPTY)
    return text


def path_argument(text: str) -> Path:
    """Takes a path, which may not be empty; see `not_empty`."""
    return Path(not_empty(text))
