"""Turns the failures that a disk or a file may cause into text, so that ranks can compare them."""

from __future__ import annotations

from collections.abc import Callable

from megatron.errors import CheckpointError

__all__ = ["attempt"]


def attempt(action: Callable[[], None]) -> str | None:
    """Runs ``action``; returns what went wrong, so that no other rank is left waiting.

    Only what a file may cause is caught: ``OSError``, `CheckpointError` and the errors of
    safetensors. Our own mistakes pass through.
    """
    try:
        action()
    except (OSError, CheckpointError) as error:
        return str(error)
    except Exception as error:  # safetensors reports a full disk as its own exception type
        if type(error).__module__.split(".")[0] != "safetensors":
            raise
        return str(error)
    return None
