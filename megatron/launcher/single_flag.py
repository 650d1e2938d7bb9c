"""Flags of the tools that take one value."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

__all__ = ["SingleFlag"]


class SingleFlag(argparse.Action):
    """Refuses a flag that is given twice; argparse would forget the first value silently.

    For values that are read, such as text, of which nothing may be left out without notice.
    """

    def __init__(self, *args: Any, advice: str, **kwargs: Any) -> None:
        """Takes what `argparse.Action` takes.

        Args:
            args: Of `argparse.Action`.
            advice: How several values are given, for the message.
            kwargs: Of `argparse.Action`.
        """
        super().__init__(*args, **kwargs)
        self.advice = advice

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Stores the value.

        Raises:
            argparse.ArgumentError: If there is one already.
        """
        before = getattr(namespace, self.dest)
        if before != self.default:
            problem = f"is given twice, with {before!r} and {values!r}; {self.advice}"
            raise argparse.ArgumentError(self, problem)
        setattr(namespace, self.dest, values)
