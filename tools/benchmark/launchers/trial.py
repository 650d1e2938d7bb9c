"""What happens to a run under a launcher: it starts, is stopped, loses a rank or its launcher."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from megatron.reporting.run_log import read_run_log

from .commands import Launcher
from .machines import Machines, send, wait_until
from .services import environment

__all__ = ["LIMIT_SECONDS", "Curve", "Found", "Outcome", "Trial", "curve_of"]

LIMIT_SECONDS = 60.0
"""A run that was stopped, or lost a rank or its launcher, ends within this time."""

_START_SECONDS = 400.0
_STEPS = 4
"""Iterations between two events of a trial."""


Curve = dict[int, tuple[Any, ...]]
"""Losses and weights by iteration."""


@dataclass
class Outcome:
    """How one event ended."""

    words: str
    is_good: bool


@dataclass
class Found:
    """What a trial found, by column, and the losses that are still to be compared."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    first: Curve = field(default_factory=dict)
    second: Curve = field(default_factory=dict)

    def compare(self, reference: Curve) -> None:
        """Adds what only the losses of the reference can tell."""
        for column, curve, words in (
            ("losses", self.first, ("equal", "differ")),
            ("resume", self.second, ("exact", "differs")),
        ):
            if curve and column not in self.outcomes:
                same = all(reference.get(step) == row for step, row in curve.items())
                self.outcomes[column] = Outcome(words[0 if same else 1], same)


@dataclass
class _Run:
    folder: Path
    starters: list[subprocess.Popen[bytes]] = field(default_factory=list)
    written: int = 0
    """Bytes that earlier starts have printed."""
    events: int = 0
    """Iterations that earlier starts have logged."""

    @property
    def config(self) -> Path:
        return self.folder / "run.yml"

    @property
    def log(self) -> Path:
        return self.folder / "run" / "logs" / "metrics.jsonl"

    @property
    def output(self) -> Path:
        return self.folder / "output.txt"


class Trial:
    """Tries one launcher on the machines."""

    def __init__(
        self, launcher: Launcher, machines: Machines, folder: Path, config: dict[str, Any]
    ) -> None:
        self._launcher = launcher
        self._machines = machines
        self._folder = folder
        self._config = config
        self._environ = environment(machines.folder)

    def run(self) -> Found:
        """Starts a run and stops it, continues it and kills a rank, then the launcher's process."""
        run, found = _Run(self._folder / "run"), Found()
        self._write(run)
        try:
            saved = self._first_start(run, found)
            if saved is not None:
                self._second_start(run, found, saved)
            if found.first and not self._launcher.is_short:
                found.outcomes["launcher"] = self._lose(run, self._launchers)
            return found
        finally:
            self._end(run)

    def _first_start(self, run: _Run, found: Found) -> int | None:
        self._start(run)
        began = self._await_iteration(run, _STEPS)
        if began is None:
            found.outcomes["start"] = Outcome(f"no: {_last_words(run)}", False)
            return None
        found.outcomes["start"] = Outcome(f"{began:.0f} s", True)
        found.outcomes["stop"], saved = self._stop(run)
        found.first = curve_of(run.log)
        return saved

    def _second_start(self, run: _Run, found: Found, saved: int) -> None:
        if not self._launcher.stop.returns:
            self._start(run)
        if self._await_iteration(run, _STEPS, after=saved) is None:
            found.outcomes["resume"] = Outcome(f"no: {_last_words(run)}", False)
        elif not self._launcher.is_short:
            found.outcomes["rank"] = self._kill(run, self._ranks()[-1:])
        found.second = {step: row for step, row in curve_of(run.log).items() if step > saved}
        self._end(run)

    def _lose(self, run: _Run, victims: Callable[[], list[psutil.Process]]) -> Outcome:
        """Starts the run once more and kills the first of ``victims``."""
        before = _saved(run)
        last = max(curve_of(run.log), default=0)
        self._start(run)
        # a run that begins again after its checkpoint logs these iterations a second time
        if self._await_iteration(run, _STEPS, after=min(before or 0, last)) is None:
            return Outcome(f"no start: {_last_words(run)}", False)
        found = self._kill(run, victims()[:1])
        words = ", saved" if _saved(run) != before else ", not saved"
        return Outcome(found.words + words, found.is_good)

    def _kill(self, run: _Run, victims: list[psutil.Process]) -> Outcome:
        if not victims:
            return Outcome("no process found to kill", False)
        began = time.monotonic()
        send(victims[0], signal.SIGKILL)
        return Outcome(*self._ending(run, began))

    def straight(self, steps: int) -> Curve:
        """Trains ``steps`` iterations without an event and returns the losses."""
        run = _Run(self._folder / "straight")
        self._write(run)
        self._start(run)
        try:
            if self._await_iteration(run, steps, seconds=1200) is None:
                raise RuntimeError(f"{self._launcher.name}: {_last_words(run)}")
            return curve_of(run.log)
        finally:
            self._end(run)

    # parts

    def _write(self, run: _Run) -> None:
        run.folder.mkdir(parents=True, exist_ok=True)
        save = str(run.folder / "run")
        run.config.write_text(json.dumps({**self._config, "save": save, "load": save}))

    def _start(self, run: _Run) -> None:
        run.events = len(_events(run.log))
        run.written = run.output.stat().st_size if run.output.exists() else 0
        run.starters = [
            self._machines.start(index, argv, environ=self._environ, output=run.output)
            for index, argv in enumerate(self._launcher.commands(run.config))
        ]

    def _await_iteration(
        self, run: _Run, steps: int, *, after: int = 0, seconds: float = _START_SECONDS
    ) -> float | None:
        """Waits until the run has done ``steps`` iterations after ``after``; None: it ended."""
        began = time.monotonic()

        def is_there() -> bool:
            here = [event["iteration"] for event in _events(run.log)[run.events :]]
            return max(here, default=0) >= after + steps

        while not is_there():
            ended = all(starter.poll() is not None for starter in run.starters)
            if ended or time.monotonic() - began > seconds:
                return time.monotonic() - began if is_there() else None
            time.sleep(0.1)
        return time.monotonic() - began

    def _stop(self, run: _Run) -> tuple[Outcome, int | None]:
        """Stops a run; the second value is the iteration that it saved."""
        stop, began = self._launcher.stop, time.monotonic()
        if stop.command is None:
            for process in self._launchers()[: len(run.starters)]:  # torchrun: one per machine
                send(process, stop.number)
        elif stop.command:
            job = self._machines.run(0, ["squeue", "-h", "-o", "%i"], self._environ).split()[0]
            argv = [word.format(job=job) for word in stop.command]
            self._machines.run(0, argv, self._environ)
        else:
            wait_until(lambda: _saved(run), seconds=420)
            began = time.monotonic()
        if stop.returns:
            limit = LIMIT_SECONDS
            seconds = wait_until(lambda: _saved(run) and not self._ranks(), seconds=limit)
            is_good = seconds is not None
            words = f"{seconds:.0f} s, queued again" if is_good else f"ranks after {limit:.0f} s"
        else:
            words, is_good = self._ending(run, began)
        saved = _saved(run)
        words += ", saved" if saved else ", not saved"
        return Outcome(words, is_good and bool(saved)), saved

    def _ending(self, run: _Run, began: float) -> tuple[str, bool]:
        """Waits until nothing of the run is left; tells the seconds and the exit code."""
        seconds = wait_until(lambda: not self._machines.strangers(), seconds=LIMIT_SECONDS)
        if seconds is None:
            left = self._machines.strangers()
            names = sorted({Path(_argv(process)[0]).name for process in left if _argv(process)})
            return f"{len(left)} left after {LIMIT_SECONDS:.0f} s ({', '.join(names)})", False
        code = run.starters[0].wait(timeout=10)
        shown = f"signal {-code}" if code < 0 else f"code {code}"
        return f"{time.monotonic() - began:.0f} s, {shown}", True

    def _ranks(self) -> list[psutil.Process]:
        return [p for p in self._machines.strangers() if is_rank(_argv(p))]

    def _launchers(self) -> list[psutil.Process]:
        word = self._launcher.process
        return [
            process
            for process in self._machines.strangers()
            if (argv := _argv(process))
            and not is_rank(argv)
            and any(word in Path(part).name or word in part.split(".") for part in argv[:4])
        ]

    def _end(self, run: _Run) -> None:
        """Ends a run whatever it does: its jobs are cancelled, its processes killed by id."""
        if self._launcher.programs == ("slurm",):
            with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
                jobs = self._machines.run(0, ["squeue", "-h", "-o", "%i"], self._environ).split()
                for job in jobs:
                    cancel = ["scancel", "--signal=KILL", "--full", job]
                    self._machines.run(0, cancel, self._environ)
                    self._machines.run(0, ["scancel", job], self._environ)
                wait_until(lambda: not self._machines.strangers(), seconds=20)
        self._machines.end_strangers()
        for starter in run.starters:
            starter.kill()
            starter.wait()


def is_rank(argv: list[str]) -> bool:
    """Returns whether a command line is that of a rank: Python's first word is train.py."""
    if not argv or not Path(argv[0]).name.startswith("python"):
        return False
    script = next((word for word in argv[1:] if word != "-u"), "")
    return Path(script).name == "train.py"


def _events(log: Path) -> list[dict[str, Any]]:
    """All iterations of all starts, as they were logged."""
    if not log.exists():
        return []
    lines = log.read_text(errors="replace").splitlines()
    events = [json.loads(line) for line in lines if line.endswith("}")]
    return [event for event in events if event["event"] == "train"]


def curve_of(log: Path) -> Curve:
    """Losses and weights of each iteration of a run log; empty before there is one."""
    if not log.exists():
        return {}
    keys = ("lm_loss", "losses", "weights", "grad_norm")
    events = [event for event in read_run_log(log) if event["event"] == "train"]
    return {event["iteration"]: tuple(map(_fixed, map(event.get, keys))) for event in events}


def _fixed(value: Any) -> Any:
    return json.dumps(value, sort_keys=True) if isinstance(value, (dict, list)) else value


def _saved(run: _Run) -> int | None:
    latest = run.folder / "run" / "latest"
    if not latest.exists():
        return None
    return int(latest.read_text().strip().removeprefix("global_step"))


def _last_words(run: _Run) -> str:
    text = run.output.read_bytes() if run.output.exists() else b""
    lines = text[run.written :].decode("utf-8", "replace").splitlines()
    telling = [line for line in lines if "rror" in line] or lines or ["no output"]
    return telling[-1].strip()[:120]


def _argv(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
