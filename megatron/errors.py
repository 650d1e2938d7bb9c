"""Errors that name something a user can mend; programs turn them into one line and exit code 2."""

__all__ = ["CheckpointError"]


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, found or trusted; the message says what to do."""
