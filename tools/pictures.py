"""Draws pictures with matplotlib: the format, the file, and what its fonts do not have."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron.files import atomic_writer

__all__ = ["drawing", "picture_format", "save_picture"]

_DPI = 130
_FORMATS = ("png", "svg", "pdf", "jpg", "jpeg", "webp")


@contextlib.contextmanager
def drawing(output: Path) -> Iterator[Any]:
    """Gives `matplotlib.pyplot` to draw a picture for a file, without a display.

    Characters that the font lacks are drawn as boxes; one message reports that, in the place of a
    warning per character.

    Raises:
        ValueError: If the ending of ``output`` is no kind of picture. Nothing has been drawn or
            made then.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    if picture_format(output) not in _FORMATS:
        raise ValueError(
            f"{output}: pictures of the kind {output.suffix} are not supported; use "
            f".{', .'.join(_FORMATS[:-1])} or .{_FORMATS[-1]}"
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield pyplot
    lacking = [one for one in caught if "missing from" in str(one.message)]
    for one in caught:
        if one not in lacking:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    if lacking:
        print(
            f"warning: {output}: the font lacks some characters of the names; they are boxes",
            file=sys.stderr,
        )


def picture_format(output: Path) -> str:
    """The format that the ending of a file names; PNG without one."""
    return output.suffix[1:].lower() or "png"


def save_picture(figure: Any, output: Path) -> None:
    """Writes a figure completely or not at all, and closes it; makes the folders above it."""
    from matplotlib import pyplot

    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_writer(output) as stream:
        figure.savefig(stream, format=picture_format(output), dpi=_DPI)
    pyplot.close(figure)
