"""Exceptions of several packages, and hints for messages about unknown names."""

import difflib
import re
from collections.abc import Iterable

__all__ = [
    "CheckpointError",
    "DamagedCheckpointError",
    "EvaluationBroken",
    "EvaluationStopped",
    "NotFiniteError",
    "TaskError",
    "UserError",
    "name_hint",
    "nearest",
    "one_line",
]

_LONG_WORD = re.compile(r"\S{301,}")


class UserError(ValueError):
    """An error that a user can fix; each message is one line.

    A line tells where, what is wrong, the value and what to do. Programs print the lines and end
    with exit code 2. A line break inside a name, a path or a library's message is escaped.
    """

    def __init__(self, *messages: object) -> None:
        super().__init__(*map(one_line, messages))

    @property
    def messages(self) -> tuple[str, ...]:
        """The messages, one per thing that is wrong."""
        return self.args

    def __str__(self) -> str:
        return "\n".join(self.messages)


class CheckpointError(UserError):
    """A checkpoint cannot be written, found or trusted."""


class DamagedCheckpointError(CheckpointError):
    """Damage that was found while a checkpoint was loaded; all ranks raise it."""


class NotFiniteError(UserError):
    """A model's logits are not finite, so no token can be chosen or scored."""


class TaskError(UserError):
    """A task of an evaluation has a request that is not supported, or has failed."""


class EvaluationStopped(Exception):
    """An evaluation was stopped because the run was asked to stop."""


class EvaluationBroken(Exception):
    """A rank failed in the middle of a computation with other ranks, which now wait for it."""


def one_line(message: object) -> str:
    """Text on one line; words of more than 300 characters are shortened in the middle."""
    text = "\\n".join(str(message).splitlines())
    return _LONG_WORD.sub(lambda word: f"{word.group()[:100]}...{word.group()[-100:]}", text)


def nearest(
    name: object, known: Iterable[str], *, most: int = 1, likeness: float = 0.6
) -> list[str]:
    """Returns the known names that are most similar to ``name``, most similar first.

    Args:
        name: Name that the user wrote.
        known: Names that exist.
        most: Maximum number of names to return.
        likeness: Least similarity, from 0 to 1.
    """
    return difflib.get_close_matches(str(name), list(known), n=most, cutoff=likeness)


def name_hint(name: object, known: Iterable[str]) -> str:
    """The end of a message about an unknown key: the most similar known key, or all known keys."""
    known = sorted(known)
    near = nearest(name, known)
    return f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"
