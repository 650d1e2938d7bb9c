"""Starts real processes that talk over gloo; every test of several ranks uses `run_ranks`.

Each rank is a process in a session of its own and dies with the test. Files carry its output, so no
pipe can fill up and block it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from megatron.launcher.rendezvous import LOOPBACK, reserve_port
from megatron.runtime.process_life import PARENT_VARIABLE, die_with_parent
from tests.distributed.fork_server import ForkedProcess, run_script

ROOT = Path(__file__).resolve().parents[2]
Process = ForkedProcess | subprocess.Popen[bytes]


@dataclass(frozen=True)
class RankResult:
    """How one rank ended."""

    exit_code: int
    """Negative: the signal that killed it."""
    value: Any
    """What the function returned; None for scripts and failures."""
    stdout: str
    stderr: str


def run_ranks(
    target: str | Path,
    world_size: int,
    *,
    arguments: Sequence[str] = (),
    keywords: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    timeout_s: float = 120.0,
    check: bool = True,
    kill: Mapping[int, float] | None = None,
    fresh: bool = False,
) -> list[RankResult]:
    """Runs ``target`` on ``world_size`` ranks and waits for them.

    Args:
        target: ``package.module:function``, or the path of a script. A function is called on every
            rank after ``prepare_process()`` (no process group yet) and returns plain JSON data.
        world_size: Number of processes.
        arguments: Command line of a script.
        keywords: Arguments of a function, plain JSON data.
        environ: Variables on top of the test's own.
        cwd: Where the ranks start.
        timeout_s: Seconds until the ranks, and nothing else, are killed.
        check: Raises when a rank fails, with the standard error of the first one that did.
        kill: Rank -> seconds after the start at which it gets SIGKILL.
        fresh: Starts interpreters, where ``environ`` holds what torch or deepspeed read when they
            are loaded. Else ranks are forks of a process that has loaded them.

    Returns:
        One result a rank.
    """
    holder, port = reserve_port(None, print)
    with holder, tempfile.TemporaryDirectory(prefix="odm-neox-test-") as name:
        folder = Path(name)
        processes: list[Process] = []
        try:
            for rank in range(world_size):
                variables = _variables(rank, world_size, port, environ or {})
                start = _start if fresh else _fork
                call = (target, arguments, keywords or {}, variables, folder)
                processes.append(start(*call, cwd=cwd))
            _wait(processes, timeout_s=timeout_s, kill=dict(kill or {}))
        finally:
            for process in processes:
                _kill(process)
        results = [_result(process, folder, rank) for rank, process in enumerate(processes)]
    if check:
        _raise_failure(results)
    return results


def _variables(rank: int, world_size: int, port: int, extra: Mapping[str, str]) -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {
        **os.environ,
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": LOOPBACK,
        "MASTER_PORT": str(port),
        PARENT_VARIABLE: str(os.getpid()),
        **extra,
    }


def _start(
    target: str | Path,
    arguments: Sequence[str],
    keywords: Mapping[str, Any],
    variables: Mapping[str, str],
    folder: Path,
    *,
    cwd: Path,
) -> Process:
    rank = variables["RANK"]
    argv = [str(target), *arguments]
    if not _is_script(target):
        argv = [__file__, str(target), json.dumps(keywords), str(folder / f"value_{rank}.json")]
    with open(folder / f"out_{rank}", "wb") as out, open(folder / f"err_{rank}", "wb") as err:
        return subprocess.Popen(
            [sys.executable, *argv],
            env=variables,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
            preexec_fn=partial(die_with_parent, os.getpid()) if sys.platform == "linux" else None,
        )


def _fork(
    target: str | Path,
    arguments: Sequence[str],
    keywords: Mapping[str, Any],
    variables: Mapping[str, str],
    folder: Path,
    *,
    cwd: Path,
) -> Process:
    rank = variables["RANK"]
    call = (str(target), json.dumps(keywords), str(folder / f"value_{rank}.json"))
    return ForkedProcess(
        *((run_script, (str(target), arguments)) if _is_script(target) else (_main, call)),
        environ=variables,
        cwd=cwd,
        stdout=folder / f"out_{rank}",
        stderr=folder / f"err_{rank}",
    )


def _is_script(target: str | Path) -> bool:
    return isinstance(target, Path) or target.endswith(".py")


def _wait(processes: Sequence[Process], *, timeout_s: float, kill: dict[int, float]) -> None:
    began = time.monotonic()
    while any(process.poll() is None for process in processes):
        seconds = time.monotonic() - began
        for rank in [rank for rank, at in kill.items() if seconds >= at]:
            del kill[rank]
            processes[rank].kill()
        # as the launcher does: one failure ends the others, after a moment for their own words
        if seconds > timeout_s or any(process.returncode not in (None, 0) for process in processes):
            _grant(processes, seconds=0.0 if seconds > timeout_s else 5.0)
            return
        time.sleep(0.02)


def _grant(processes: Sequence[Process], *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(process.poll() is None for process in processes):
        time.sleep(0.02)
    for process in processes:
        _kill(process)


def _kill(process: Process) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):  # a fork that has no session yet
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()


def _result(process: Process, folder: Path, rank: int) -> RankResult:
    value = folder / f"value_{rank}.json"
    return RankResult(
        exit_code=process.wait(),
        value=json.loads(value.read_text()) if value.is_file() else None,
        stdout=(folder / f"out_{rank}").read_text(errors="replace"),
        stderr=(folder / f"err_{rank}").read_text(errors="replace"),
    )


def _raise_failure(results: Sequence[RankResult]) -> None:
    failed = [(rank, result) for rank, result in enumerate(results) if result.exit_code != 0]
    if failed:
        codes = [result.exit_code for result in results]
        words = "\n".join(f"[rank {rank}]\n{result.stderr[-6000:]}" for rank, result in failed)
        raise AssertionError(f"ranks ended with {codes} (-9: killed, or out of time)\n{words}")


def _main(target: str, keywords: str, value: str) -> None:
    import importlib

    from megatron.runtime.initialize import prepare_process, shutdown

    prepare_process()
    module, _, function = target.partition(":")
    result = getattr(importlib.import_module(module), function)(**json.loads(keywords))
    # the name changes last: a rank that dies while it writes has no value
    temporary = Path(f"{value}.tmp")
    temporary.write_text(json.dumps(result))
    temporary.rename(value)
    shutdown()
    # as all our programs end: gloo's threads may abort the interpreter's own way out
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    _main(*sys.argv[1:])
