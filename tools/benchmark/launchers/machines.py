"""Two machines on this one: namespaces of Linux with a network, processes and a name of their own.

All traffic stays on this machine: the two ends of one virtual cable are its only interfaces. When
the first process of a machine ends, the kernel ends all others of it, so nothing is left.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType

import psutil

from megatron.runtime.process_life import die_with_parent

__all__ = ["ADDRESSES", "NAMES", "Machines", "missing_for_machines", "send", "wait_until"]

NAMES = ("first", "second")
ADDRESSES = ("10.77.0.1", "10.77.0.2")
_TOOLS = ("unshare", "nsenter", "ip", "mount")

# SIGCHLD ignored: the kernel then collects the orphans of the machine
_FIRST_PROCESS = (
    "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN); print('up', flush=True)\n"
    "while True: signal.pause()"
)


def missing_for_machines() -> str | None:
    """What this machine lacks for machines of its own, or None."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs root on Linux, for two machines as namespaces"
    lacking = [name for name in _TOOLS if shutil.which(name) is None]
    return f"needs the program {lacking[0]}" if lacking else None


class Machines:
    """Use as a context; ``folder`` holds what the machines see as their own /etc files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._first: list[subprocess.Popen[str]] = []
        self._pids: list[int] = []
        self._spaces: list[str] = []
        self._services: set[tuple[int, float]] = set()

    def __enter__(self) -> Machines:
        try:
            for index in range(len(NAMES)):
                self._boot(index)
            self._connect()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._first:
            process.kill()  # --kill-child: its child, the machine's first process, goes with it
            process.wait()
        for pid in self._pids:
            while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.02)

    def command(self, machine: int, argv: Sequence[str]) -> list[str]:
        """The command line that runs ``argv`` on a machine."""
        spaces = ("--net", "--uts", "--mount", "--pid", f"--wdns={os.getcwd()}")
        return ["nsenter", f"--target={self._pids[machine]}", *spaces, "--", *argv]

    def run(self, machine: int, argv: Sequence[str], environ: Mapping[str, str]) -> str:
        """Runs a short command to its end and returns its output."""
        done = subprocess.run(
            self.command(machine, argv),
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout.strip()

    def start(
        self, machine: int, argv: Sequence[str], *, environ: Mapping[str, str], output: Path
    ) -> subprocess.Popen[bytes]:
        """Starts a command; standard output and error are appended to ``output``."""
        with open(output, "ab") as file:
            return subprocess.Popen(
                self.command(machine, argv),
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def take_services(self) -> None:
        """Notes that what runs now is to stay: `strangers` leaves it out."""
        self._services = {(p.pid, p.create_time()) for p in self._processes()}

    def strangers(self) -> list[psutil.Process]:
        """Processes of both machines that are no services, in the order of their start."""
        found = []
        for process in self._processes():
            try:
                if (process.pid, process.create_time()) not in self._services:
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return sorted(found, key=lambda process: (process.create_time(), process.pid))

    def end_strangers(self) -> None:
        """Kills what a trial left, by process id."""
        while found := self.strangers():
            for process in found:
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
            psutil.wait_procs(found, timeout=1)

    def _processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                space = os.readlink(f"/proc/{process.pid}/ns/pid")
                if space in self._spaces and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (OSError, psutil.NoSuchProcess):
                continue
        return [process for process in found if process.pid not in self._pids]

    def _boot(self, index: int) -> None:
        own = self.folder / NAMES[index]
        (own / "ssh").mkdir(parents=True)
        hosts = "".join(f"{a} {n}\n" for a, n in zip(ADDRESSES, NAMES, strict=True))
        (own / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
        script = (
            f"set -e; hostname {NAMES[index]}; mount --bind {own}/hosts /etc/hosts; "
            f"mount -t tmpfs none /run; mkdir -m 755 /run/sshd; "
            f"if [ -d /etc/ssh ]; then mount --bind {own}/ssh /etc/ssh; fi; "
            f'ip link set lo up; exec {sys.executable} -c "$FIRST_PROCESS"'
        )
        process = subprocess.Popen(
            [
                *("unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child"),
                *("--mount-proc", "sh", "-c", script),
            ],
            env={**os.environ, "FIRST_PROCESS": _FIRST_PROCESS},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=partial(die_with_parent, os.getpid()),  # the machine does not outlive us
        )
        self._first.append(process)
        assert process.stdout is not None
        if process.stdout.readline().strip() != "up":
            raise RuntimeError(f"machine {NAMES[index]} did not start")
        (child,) = psutil.Process(process.pid).children()
        self._pids.append(child.pid)
        self._spaces.append(os.readlink(f"/proc/{child.pid}/ns/pid"))

    def _connect(self) -> None:
        """Lays the cable; an interface that moves to a machine is gone from here."""
        ends = [f"odm{os.getpid() % 100_000}{letter}" for letter in "ab"]
        _ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for end, pid, address, index in zip(ends, self._pids, ADDRESSES, (0, 1), strict=True):
            _ip("link", "set", end, "netns", str(pid), "name", "eth0")
            for argv in (
                ["ip", "address", "add", f"{address}/24", "dev", "eth0"],
                ["ip", "link", "set", "eth0", "up"],
            ):
                self.run(index, argv, os.environ)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, stdin=subprocess.DEVNULL)


def wait_until(
    condition: Callable[[], object], *, seconds: float, pause: float = 0.1
) -> float | None:
    """Waits for a condition; returns the seconds that this took, or None."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            return None
        time.sleep(pause)
    return time.monotonic() - began


def send(process: psutil.Process, number: signal.Signals) -> None:
    """Signals a process, unless it is gone."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return
