"""Processes that need not load torch: forks of one that has, made for all tests of a worker.

A start costs hundredths of a second instead of four. The server has loaded modules and run nothing
else: it has one thread, no process group and no random state of ours. Its forks share the seed of
Python's hashes, which ranks that a launcher starts do not.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron.runtime.process_life import PARENT_VARIABLE, die_with_parent

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.distributed.preloaded"])


class ForkedProcess:
    """A running fork, with those methods of ``subprocess.Popen`` that tests use."""

    def __init__(
        self,
        target: Callable[..., None],
        arguments: Sequence[Any],
        *,
        environ: Mapping[str, str],
        cwd: Path,
        stdout: Path,
        stderr: Path,
    ) -> None:
        """Calls ``target(*arguments)`` in a session of its own; both are plain data or global."""
        for path in (stdout, stderr):
            path.touch()
        call = (target, arguments, dict(environ), str(cwd), str(stdout), str(stderr))
        self._process = _context.Process(target=_run, args=call)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int | None:
        self._process.join(timeout)
        return self._process.exitcode


def _run(
    target: Callable[..., None],
    arguments: Sequence[Any],
    environ: dict[str, str],
    cwd: str,
    stdout: str,
    stderr: str,
) -> None:
    """What a fork does."""
    import numpy

    os.setsid()
    die_with_parent(os.getppid())
    for path, descriptor in ((stdout, 1), (stderr, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, descriptor)
        os.close(file)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environ, **{PARENT_VARIABLE: str(os.getppid())})
    numpy.random.seed()  # as in a fresh process, none like another
    target(*arguments)


def run_script(path: str, arguments: Sequence[str]) -> None:
    """Runs a script as ``python path arguments``."""
    sys.argv = [path, *arguments]
    sys.path.insert(0, str(Path(path).resolve().parent))
    runpy.run_path(path, run_name="__main__")
