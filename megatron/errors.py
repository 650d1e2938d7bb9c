"""Exceptions that several layers raise and handle, and the hint in a message about a name."""

import difflib
from collections.abc import Iterable

__all__ = [
    "CheckpointError",
    "EvaluationBroken",
    "EvaluationStopped",
    "NotFiniteError",
    "TaskError",
    "UserError",
    "name_hint",
    "nearest",
]


class UserError(ValueError):
    """What a user can set right; one line: where, what is wrong, the value, what to do.

    Programs turn it into this line and exit code 2.
    """


class CheckpointError(UserError):
    """A checkpoint cannot be written, found or trusted."""


class NotFiniteError(UserError):
    """A model's logits are not finite, so that they choose no token and give no score."""


class TaskError(UserError):
    """A task of an evaluation asks for what cannot be answered, or has failed."""


class EvaluationStopped(Exception):
    """An evaluation was broken off because the run was asked to stop."""


class EvaluationBroken(Exception):
    """A rank failed in the middle of what it computes together with others, who wait for it."""


def nearest(
    name: object, known: Iterable[str], *, most: int = 1, likeness: float = 0.6
) -> list[str]:
    """Returns the known names that look most like ``name``, the nearest first.

    Args:
        name: As the user wrote it.
        known: Names that are there.
        most: How many to return.
        likeness: From 0 to 1; those below it are not near.
    """
    return difflib.get_close_matches(str(name), list(known), n=most, cutoff=likeness)


def name_hint(name: object, known: Iterable[str]) -> str:
    """What a message about an unknown key ends with: the nearest, or all that there are."""
    known = sorted(known)
    near = nearest(name, known)
    return f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"
