"""Starts the ranks of a run on this machine, watches them and ends them all together.

We do not use DeepSpeed's inner launcher: on SIGTERM it terminates its ranks and always returns 1,
it ends 30 s after a rank that does not react, and it needs torch to start. The ranks here get
the same environment variables. The guarantees:

- SIGTERM, SIGINT (Ctrl-C), SIGHUP and SIGUSR1 reach every rank once, as SIGTERM; ranks that save
  and exit with 0 make the run exit with 0. In a program that talks with the user, Ctrl-C is for
  that program: it reaches rank 0, as SIGINT, each time.
- If a rank fails, the others are ended; its last output is shown once.
- The death of the launcher, by any signal, ends the ranks (Linux: the kernel kills them).
"""

from __future__ import annotations

import math
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Any

from megatron.runtime.process_life import (
    PARENT_VARIABLE,
    REPEAT_SECONDS,
    STOP_SIGNALS,
    die_with_parent,
)

__all__ = ["RankCommand", "Supervisor", "SHOW_ALL_VARIABLE", "StopRequest"]

SHOW_ALL_VARIABLE = "ODM_NEOX_SHOW_ALL_RANKS"
"""Set to 1 to see the standard error of every rank as it comes, not of rank 0 alone."""

_POLL_SECONDS = 0.05
_SETTLE_SECONDS = 2.0  # time for rank 0 to print the error that another rank met a moment earlier
_KEPT_BYTES = 64 * 1024
_SHOWN_LINES = 40


@dataclass(frozen=True)
class RankCommand:
    """One rank to start: its command line and its whole environment."""

    argv: Sequence[str]
    environ: Mapping[str, str]


@dataclass(frozen=True)
class StopRequest:
    """A request to end the ranks that is no signal to this process."""

    reason: str
    """Empty if the user knows it already."""
    at_once: bool = False
    """Without a save."""
    since: float | None = None
    """When the reason began, by `time.monotonic`; the time of grace counts from there."""


@dataclass
class _Rank:
    index: int
    process: subprocess.Popen[bytes]
    last_words: bytearray = field(default_factory=bytearray)
    exit_code: int | None = None
    spoke_at: float = math.inf
    """When the first sign of an error came; None for rank 0, whose output is not held back."""


class Supervisor:
    """Runs ranks to their end; use `run` once, from the main thread of a process without others."""

    def __init__(
        self,
        commands: Sequence[RankCommand],
        *,
        grace_seconds: float,
        report: Callable[[str], None],
        pass_interrupts: bool = False,
        first_rank: int = 0,
        stop_request: Callable[[], StopRequest | None] | None = None,
    ) -> None:
        """Prepares a run.

        Args:
            commands: One per rank, in rank order.
            grace_seconds: Time that ranks get to save after a request to stop, before SIGKILL.
            report: Receives each message for the user.
            pass_interrupts: Hands SIGINT on to rank 0 instead of ending the run.
            first_rank: Rank of the first command; not 0 on a further machine of a run.
            stop_request: Returns a request that came another way, if there is one; asked often.
        """
        self._commands = commands
        self._grace_seconds = grace_seconds
        self._report = report
        self._pass_interrupts = pass_interrupts
        self._first_rank = first_rank
        self._asked = stop_request
        self._ranks: list[_Rank] = []
        self._selector = selectors.DefaultSelector()
        self._stop_signal: int | None = None
        self._stop_since = 0.0
        self._stop_reason: str | None = None
        self._stop_forwarded = False
        self._kill_signal: int | None = None

    def run(self) -> int:
        """Starts the ranks and waits for all of them.

        Returns:
            0 when every rank exited with 0; 2 when a rank refused the user's input; 128 and the
            signal's number when a second one killed the run, as a shell has it; else 1.
        """
        previous = self._take_signals()
        try:
            for index in range(len(self._commands)):
                self._start(index)
            return self._watch()
        finally:
            self._kill_all()
            self._selector.close()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _start(self, place: int) -> None:
        command = self._commands[place]
        posix = os.name == "posix"
        index = self._first_rank + place
        hold_back = posix and index > 0 and os.environ.get(SHOW_ALL_VARIABLE) != "1"
        process = subprocess.Popen(
            command.argv,
            env={**command.environ, PARENT_VARIABLE: str(os.getpid())},
            stdin=None if index == 0 else subprocess.DEVNULL,
            stderr=subprocess.PIPE if hold_back else None,
            # a session of its own: the terminal's Ctrl-C reaches the launcher alone, which passes
            # it on once; and whatever a rank starts can be ended with it
            start_new_session=True,
            # before exec, so that no moment is left in which the launcher's death goes unnoticed
            preexec_fn=partial(die_with_parent, os.getpid()) if sys.platform == "linux" else None,
        )
        rank = _Rank(index, process)
        self._ranks.append(rank)
        if process.stderr is not None:
            os.set_blocking(process.stderr.fileno(), False)
            self._selector.register(process.stderr, selectors.EVENT_READ, rank)

    def _watch(self) -> int:
        failed_since: float | None = None
        while any(rank.exit_code is None for rank in self._ranks):
            self._listen(_POLL_SECONDS)
            if self._take_request():
                self._kill_all()
                return 1
            self._forward_stop()
            for rank in self._ranks:
                self._reap(rank)
            now = time.monotonic()
            codes = [rank.exit_code for rank in self._ranks if rank.exit_code]
            if codes and failed_since is None:
                failed_since = now
            if failed_since is not None and now - failed_since > _SETTLE_SECONDS:
                break
            if self._kill_signal is not None:
                return self._end_now(self._kill_signal)
            if any(code < 0 for code in codes):
                break
            if self._stop_forwarded and now - self._stop_since > self._grace_seconds:
                self._report(
                    f"deepy.py: the run did not end within {self._grace_seconds:g} s of the "
                    "request to stop; killing it"
                )
                break
        if failed_since is not None:
            return self._explain()
        return 1 if self._kill_all() else 0

    def _listen(self, seconds: float) -> None:
        """Keeps the newest bytes that held-back ranks write; sleeps when none can come."""
        if not self._selector.get_map():
            time.sleep(seconds)
            return
        for key, _ in self._selector.select(seconds):
            stream: IO[bytes] = key.fileobj  # type: ignore[assignment]
            block = stream.read(_KEPT_BYTES)
            if not block:
                self._selector.unregister(stream)
                continue
            words = key.data.last_words
            if b"Error" in block or b"error" in block:
                key.data.spoke_at = min(key.data.spoke_at, time.monotonic())
            words += block
            del words[:-_KEPT_BYTES]

    def _reap(self, rank: _Rank) -> None:
        if rank.exit_code is not None:
            return
        if hasattr(os, "waitid"):
            if os.waitid(os.P_PID, rank.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return
            # what a rank left running goes with it; while it is a zombie, its group id is its own
            _kill_group(rank.process.pid)
        rank.exit_code = rank.process.poll()

    def _kill_all(self) -> int:
        """Kills the ranks that still run and returns how many these were.

        A rank that somebody stopped (SIGSTOP) is named: the others ended because it did not answer.
        """
        alive = [rank for rank in self._ranks if rank.exit_code is None]
        for rank in alive:
            if _is_stopped(rank.process.pid):
                self._report(
                    f"deepy.py: rank {rank.index} (process {rank.process.pid}) is stopped by a "
                    "signal and did not answer the others"
                )
        for rank in alive:
            _kill_group(rank.process.pid)
            rank.process.kill()
        for rank in alive:
            rank.exit_code = rank.process.wait()
        return len(alive)

    def _explain(self) -> int:
        """Reports once why the run failed, and returns its exit code."""
        self._listen(0.0)
        failed = [rank for rank in self._ranks if rank.exit_code]
        killed = [rank for rank in failed if rank.exit_code is not None and rank.exit_code < 0]
        refused = [rank for rank in failed if rank.exit_code == 2]
        if self._stop_forwarded and any(rank.exit_code == -signal.SIGTERM for rank in killed):
            self._report("deepy.py: stopped as requested; no checkpoint was written")
            return 1
        if refused and refused[0].index == 0:
            return 2  # rank 0 has printed the message, and one message is enough
        # the rank where the error began speaks before its closed sockets make the others fail
        culprit = min(refused or killed or failed, key=lambda rank: (rank.spoke_at, rank.index))
        if not (refused and culprit.last_words):  # a refusal says all that the user needs
            reason = _describe(culprit.exit_code or 0)
            self._report(f"deepy.py: rank {culprit.index} {reason}; the run was ended")
        for line in culprit.last_words.decode("utf-8", "replace").splitlines()[-_SHOWN_LINES:]:
            self._report(f"[rank {culprit.index}] {line}")
        return 2 if refused else 1

    # signals

    def _take_signals(self) -> dict[int, Any]:
        handlers: dict[int, Any] = dict.fromkeys(STOP_SIGNALS, self._on_stop)
        if self._pass_interrupts:
            handlers[signal.SIGINT] = self._on_interrupt
        if hasattr(signal, "SIGTSTP"):
            handlers[signal.SIGTSTP] = self._on_pause
        previous: dict[int, Any] = {}
        for number, handler in handlers.items():
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, handler)
        return previous

    def _on_stop(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self._stop_signal is None:
            self._stop_signal, self._stop_since = number, now
        elif now - self._stop_since >= REPEAT_SECONDS:
            self._kill_signal = number

    def _on_interrupt(self, number: int, frame: object) -> None:
        if self._ranks and self._ranks[0].exit_code is None:
            os.kill(self._ranks[0].process.pid, number)

    def _on_pause(self, number: int, frame: object) -> None:
        """Ctrl-Z: the ranks are in other sessions and would keep running unnoticed."""
        self._signal_ranks(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        self._signal_ranks(signal.SIGCONT)

    def _end_now(self, number: int) -> int:
        """Kills the run at a second request, reports it, and returns the exit code."""
        self._report(
            f"deepy.py: {signal.Signals(number).name} again: the run is killed; what it did since "
            "its last checkpoint is lost"
        )
        self._kill_all()
        return 128 + number

    def _take_request(self) -> bool:
        """Takes a request that came another way; returns whether the ranks are to end at once."""
        request = self._asked() if self._asked else None
        if request is not None and self._stop_signal is None:
            self._stop_signal, self._stop_reason = signal.SIGTERM, request.reason
            self._stop_since = time.monotonic() if request.since is None else request.since
        return request is not None and request.at_once

    def _forward_stop(self) -> None:
        if self._stop_signal is None or self._stop_forwarded:
            return
        self._stop_forwarded = True
        reason, advice = self._stop_reason, ""
        if reason is None:
            reason = signal.Signals(self._stop_signal).name
            advice = "; a second signal ends it now"
        if reason:
            within = f"within {self._grace_seconds:g} s"
            self._report(f"deepy.py: {reason}: the run saves and stops, {within}{advice}")
        self._signal_ranks(signal.SIGTERM)

    def _signal_ranks(self, number: int) -> None:
        for rank in self._ranks:
            if rank.exit_code is None:
                os.kill(rank.process.pid, number)


def _kill_group(pid: int) -> None:
    if hasattr(os, "killpg"):
        try:
            os.killpg(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass


def _is_stopped(pid: int) -> bool:
    """Returns whether a process is in state T; False where there is no /proc to ask."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


def _describe(exit_code: int) -> str:
    if exit_code >= 0:
        return f"failed with exit code {exit_code}"
    name = signal.Signals(-exit_code).name
    hint = " (did the machine run out of memory?)" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"
