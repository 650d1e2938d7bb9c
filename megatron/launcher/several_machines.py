"""Runs ranks on several machines over ssh: starts them together and ends them together.

We do not use DeepSpeed's runner: it stops a run by the names of its processes, which ends other
runs of the same user as well; when it is killed or ssh is cut, ranks train on; and everything that
it passes on is on command lines, which every user of a machine can read. Here each machine runs
`megatron.launcher.machine`, and its standard input is the link to this process.
"""

from __future__ import annotations

import json
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from megatron.errors import UserError, one_line
from megatron.launcher.machine import BEAT_SECONDS, READY
from megatron.runtime.process_life import REPEAT_SECONDS, STOP_SIGNALS

__all__ = ["ANSWER_SECONDS", "SeveralMachines", "ssh_command"]

ANSWER_SECONDS = 60.0
"""A machine that has not answered after this time ends the start."""

_POLL_SECONDS = 0.1
_SETTLE_SECONDS = 3.0
"""After a failure, time for the other machines to report what they know."""

_CONNECTION_LOST = 255
_REASON_LINES = 3


def ssh_command(host: str, environ: Mapping[str, str]) -> list[str]:
    """The command that runs this machine's part on ``host``; a folder of the same name is there.

    ``PDSH_SSH_ARGS_APPEND`` holds more arguments for ssh, as for pdsh.
    """
    options = ["BatchMode=yes", "ConnectTimeout=30", "ServerAliveInterval=10"]
    flags = [word for option in options for word in ("-o", option)]
    more = shlex.split(environ.get("PDSH_SSH_ARGS_APPEND", ""))
    python = shlex.join([sys.executable, "-u", "-m", "megatron.launcher.machine"])
    there = f"cd {shlex.quote(os.getcwd())} && exec {python}"
    return ["ssh", "-T", *flags, *more, "--", host, there]


@dataclass
class _Machine:
    host: str
    process: subprocess.Popen[bytes]
    threads: list[threading.Thread] = field(default_factory=list)
    hello: dict[str, Any] | None = None
    exit_code: int | None = None
    last_lines: list[str] = field(default_factory=list)

    def send(self, line: bytes) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line + b"\n")
            self.process.stdin.flush()
        except OSError:
            pass  # it is gone; its exit code tells how


class SeveralMachines:
    """Use `run` once, from the main thread."""

    def __init__(
        self,
        orders: Mapping[str, Mapping[str, Any]],
        *,
        command: Callable[[str], Sequence[str]],
        grace_seconds: float,
        report: Callable[[str], None],
        master_address: str | None = None,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        """Prepares a run.

        Args:
            orders: What `megatron.launcher.machine` gets, by host; rank 0's machine is the first.
            command: The command that starts it on a host.
            grace_seconds: Time for a save; the machines end their ranks after it.
            report: Receives each message for the user.
            master_address: Where ranks meet; None: where ssh reached the first machine.
            answer_seconds: Time in which every machine has to answer.
        """
        self._orders = orders
        self._command = command
        self._grace_seconds = grace_seconds
        self._report = report
        self._master_address = master_address
        self._answer_seconds = answer_seconds
        self._machines: list[_Machine] = []
        self._hellos: queue.SimpleQueue[tuple[_Machine, dict[str, Any]]] = queue.SimpleQueue()
        self._stop_signal: int | None = None
        self._stop_since = 0.0
        self._stop_sent = False
        self._kill_signal: int | None = None
        self._signal_at = 0.0
        self._beat_at = 0.0

    def run(self) -> int:
        """Starts the ranks everywhere and waits for all of them; returns as `Supervisor.run`.

        Raises:
            UserError: If a machine does not answer; then no rank has started anywhere.
        """
        previous = self._take_signals()
        try:
            for place, host in enumerate(self._orders):
                self._connect(host, is_first=place == 0)
            if not self._meet():
                return 1
            return self._watch()
        finally:
            for machine in self._machines:
                if machine.process.poll() is None:
                    machine.process.kill()
                    machine.process.wait()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _connect(self, host: str, *, is_first: bool) -> None:
        process = subprocess.Popen(
            self._command(host),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # the terminal's Ctrl-C reaches this process alone
        )
        machine = _Machine(host, process)
        self._machines.append(machine)
        assert process.stdout is not None
        assert process.stderr is not None
        for stream, target, prefix in (
            (process.stdout, sys.stdout, "" if is_first else f"{host}: "),
            (process.stderr, sys.stderr, "" if is_first else f"{host}: "),
        ):
            arguments = (machine, stream, target, prefix)
            thread = threading.Thread(target=self._pass_on, args=arguments, daemon=True)
            machine.threads.append(thread)
            thread.start()
        machine.send(json.dumps(self._orders[host]).encode())

    def _pass_on(self, machine: _Machine, stream: IO[bytes], target: IO[str], prefix: str) -> None:
        """Passes lines on; before the ranks run, they are kept as the reason of a failure."""
        for line in stream:
            text = line.decode("utf-8", "replace")
            if machine.hello is not None:
                target.write(prefix + text)
                target.flush()
            elif text.startswith(READY):
                machine.hello = json.loads(text[len(READY) :])
            elif text.strip():
                machine.last_lines = [*machine.last_lines, text.strip()][-_REASON_LINES:]

    def _meet(self) -> bool:
        """Waits until all machines are there and tells them where to meet; False: stopped."""
        end = time.monotonic() + self._answer_seconds
        while waiting := [machine for machine in self._machines if machine.hello is None]:
            for machine in waiting:
                if machine.process.poll() is not None:
                    for thread in machine.threads:
                        thread.join(timeout=1)
                    code = machine.process.returncode
                    words = "; ".join(machine.last_lines) or f"ssh ended with exit code {code}"
                    raise UserError(
                        f"host {machine.host}: cannot start there: {one_line(words)}; nothing was "
                        "started on any machine"
                    )
            if time.monotonic() > end:
                names = ", ".join(machine.host for machine in waiting)
                raise UserError(
                    f"host {names}: no answer over ssh within {self._answer_seconds:g} s; nothing "
                    "was started on any machine"
                )
            if self._stop_signal is not None:
                self._report("deepy.py: stopped before the ranks started")
                return False
            time.sleep(_POLL_SECONDS)
        meeting = json.dumps(self._meeting()).encode()
        for machine in self._machines:
            machine.send(meeting)
        return True

    def _meeting(self) -> dict[str, Any]:
        first = self._machines[0]
        assert first.hello is not None
        if len(self._machines) == 1:
            address = "127.0.0.1"
        else:
            name = first.host.rpartition("@")[2]
            name = first.hello["name"] if name == "localhost" else name
            address = self._master_address or first.hello["address"] or name
        return {"address": address, "port": first.hello["port"]}

    def _watch(self) -> int:
        failed_since: float | None = None
        end = float("inf")
        while any(machine.exit_code is None for machine in self._machines):
            time.sleep(_POLL_SECONDS)
            self._beat()
            now = time.monotonic()
            if self._stop_signal is not None and not self._stop_sent:
                name = signal.Signals(self._stop_signal).name
                self._report(
                    f"deepy.py: {name}: the run saves and stops, within {self._grace_seconds:g} s; "
                    "a second signal ends it now"
                )
                end = self._ask_to_stop()
            if self._kill_signal is not None or now > end:
                return self._end_now()
            for machine in self._machines:
                if machine.exit_code is None and machine.process.poll() is not None:
                    machine.exit_code = machine.process.returncode
                    if machine.exit_code in (_CONNECTION_LOST, -signal.SIGKILL, -signal.SIGTERM):
                        self._report(
                            f"deepy.py: the connection to {machine.host} is lost; the run saves "
                            "and stops"
                        )
                        end = self._ask_to_stop()
                    elif machine.exit_code:
                        failed_since = failed_since or now
            if failed_since is not None and now - failed_since > _SETTLE_SECONDS:
                self._send_all(b"kill")
                end, failed_since = now + 10.0, float("inf")
        for machine in self._machines:
            for thread in machine.threads:
                thread.join(timeout=2)
        return self._exit_code()

    def _ask_to_stop(self) -> float:
        """Asks all machines; returns when the connections are cut if they do not end."""
        if not self._stop_sent:
            self._stop_sent = True
            self._stop_since = time.monotonic()
            self._send_all(b"stop")
        return self._stop_since + self._grace_seconds + 10.0

    def _exit_code(self) -> int:
        codes = [machine.exit_code for machine in self._machines]
        for machine in self._machines:
            if machine.exit_code not in (0, 1, 2):
                self._report(f"deepy.py: {machine.host}: ended with code {machine.exit_code}")
        return 0 if not any(codes) else 2 if 2 in codes else 1

    def _end_now(self) -> int:
        if self._kill_signal is None:
            self._report("deepy.py: machines did not end in time; their connections are cut")
            return 1
        name = signal.Signals(self._kill_signal).name
        self._report(
            f"deepy.py: {name} again: the run is killed; what it did since its last checkpoint is "
            "lost"
        )
        self._send_all(b"kill")
        end = time.monotonic() + 10.0
        while time.monotonic() < end and any(m.process.poll() is None for m in self._machines):
            time.sleep(_POLL_SECONDS)
        return 128 + self._kill_signal

    def _beat(self) -> None:
        if time.monotonic() - self._beat_at >= BEAT_SECONDS:
            self._beat_at = time.monotonic()
            self._send_all(b"alive")

    def _send_all(self, line: bytes) -> None:
        for machine in self._machines:
            if machine.process.poll() is None:
                machine.send(line)

    def _take_signals(self) -> dict[int, Any]:
        previous: dict[int, Any] = {}
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, self._on_stop)
        return previous

    def _on_stop(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self._stop_signal is None:
            self._stop_signal, self._signal_at = number, now
        elif now - self._signal_at >= REPEAT_SECONDS:
            self._kill_signal = number
