"""Sides of a comparison, each in a process of its own, that wait while the other runs."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any, Protocol

__all__ = ["Side", "Worker"]

Answers = Mapping[str, Callable[..., Any]]


class Side(Protocol):
    """What waits until it is asked."""

    def ask(self, request: str) -> Any:
        """Sends a request and waits for the answer."""


class Worker:
    """A process that answers requests; no side inherits the other's allocator settings.

    Args:
        prepare: A function of a module, called in the new process; returns what each request does.
        arguments: Arguments of ``prepare``.
    """

    def __init__(self, prepare: Callable[..., Answers], *arguments: Any):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, prepare, arguments), daemon=True
        )
        self._process.start()
        theirs.close()
        self._receive()

    def ask(self, request: str, *arguments: Any) -> Any:
        """Sends a request and waits for the answer.

        Raises:
            RuntimeError: If the other process failed; with its traceback.
        """
        self._pipe.send((request, arguments))
        return self._receive()

    def close(self) -> None:
        """Ends the process."""
        self._pipe.send(None)
        self._process.join()

    def _receive(self) -> Any:
        answer, failure = self._pipe.recv()
        if failure:
            raise RuntimeError(failure)
        return answer


def _serve(pipe: Connection, prepare: Callable[..., Answers], arguments: tuple[Any, ...]) -> None:
    try:
        answers = prepare(*arguments)
        pipe.send((None, None))
        while (request := pipe.recv()) is not None:
            name, values = request
            pipe.send((answers[name](*values), None))
    except Exception:
        pipe.send((None, traceback.format_exc()))
