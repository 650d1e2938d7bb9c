"""Exceptions that several layers raise and handle."""

__all__ = [
    "CheckpointError",
    "EvaluationBroken",
    "EvaluationStopped",
    "NotFiniteError",
    "TaskError",
    "UserError",
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
