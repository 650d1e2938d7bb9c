"""Exceptions that several layers raise and handle."""

__all__ = ["CheckpointError", "EvaluationBroken", "EvaluationStopped"]


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, found or trusted; the message says what to do.

    Programs turn it into one line and exit code 2.
    """


class EvaluationStopped(Exception):
    """An evaluation was broken off because the run was asked to stop."""


class EvaluationBroken(Exception):
    """A rank failed in the middle of what it computes together with others, who wait for it."""
