"""One machine's part of a run over several: `deepy.py` starts this on each of them over ssh.

Standard input is the link to `deepy.py`: the order, then a line per request, and a sign of life
every few seconds. If it ends, or stays silent, `deepy.py` or the network is gone: the ranks save
and stop, as they do when they are asked to. So no rank outlives its launcher, and a run is stopped
by its own link; no process is looked for by name.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron.launcher.arguments_file import arguments_folder, write_arguments
from megatron.launcher.devices import count_devices, rank_device_environment
from megatron.launcher.rendezvous import LOOPBACK, reserve_port
from megatron.launcher.supervisor import RankCommand, StopRequest, Supervisor

__all__ = ["BEAT_SECONDS", "READY", "Link", "commands_of", "main"]

READY = "odm-neox machine ready "
"""Begins the first line that a machine sends; a login shell may print others before it."""

BEAT_SECONDS = 5.0
"""Time between two signs of life of `deepy.py`."""

_SILENCE_SECONDS = 30.0


class Link:
    """Reads requests from `deepy.py`, one per line, in a thread of its own."""

    def __init__(self, descriptor: int, *, silence_seconds: float = _SILENCE_SECONDS) -> None:
        self._descriptor = descriptor
        self._silence_seconds = silence_seconds
        self._buffer = b""
        self._heard = time.monotonic()
        self._asked: StopRequest | None = None

    def read_line(self) -> bytes:
        """Waits for a line; empty at the end of the link."""
        while b"\n" not in self._buffer:
            block = self._read()
            if not block:
                return b""
            self._buffer += block
        line, _, self._buffer = self._buffer.partition(b"\n")
        self._heard = time.monotonic()
        return line

    def listen(self) -> None:
        """Starts the thread; `stop_request` then tells what was heard."""
        self._heard = time.monotonic()
        threading.Thread(target=self._hear, daemon=True).start()

    def stop_request(self) -> StopRequest | None:
        """What the ranks are to do, with the reason; None: continue."""
        silence = time.monotonic() - self._heard
        if self._asked is None and silence > self._silence_seconds:
            reason = f"nothing heard from deepy.py for {silence:.0f} s"
            self._asked = StopRequest(reason, since=self._heard)
        return self._asked

    def _hear(self) -> None:
        while line := self.read_line():
            if line == b"stop":
                self._asked = StopRequest("")
            elif line == b"kill":
                self._asked = StopRequest("", at_once=True)
        self._asked = self._asked or StopRequest("deepy.py, or the connection to it, is gone")

    def _read(self) -> bytes:
        try:
            return os.read(self._descriptor, 1 << 16)
        except OSError:
            return b""


def main() -> int:
    """Runs the ranks of this machine; returns their exit code, as `Supervisor.run`."""
    link = Link(os.dup(0))
    order: dict[str, Any] = json.loads(link.read_line() or b"{}")
    if not order:
        return 1
    holder, port = reserve_port(order["master_port"], _say)
    with holder:
        hello = {"address": _own_address(), "name": socket.gethostname(), "port": port}
        sys.stdout.write(READY + json.dumps(hello) + "\n")
        sys.stdout.flush()
        meeting = json.loads(link.read_line() or b"{}")
        if not meeting:
            return 1
        _keep_output_open()
        link.listen()
        with arguments_folder() as folder:
            path = write_arguments(folder, "megatron_config", order["config"])
            commands = commands_of(order, meeting, path, os.environ)
            return Supervisor(
                commands,
                grace_seconds=order["grace_seconds"],
                report=_say,
                first_rank=order["first_rank"],
                stop_request=link.stop_request,
            ).run()


def commands_of(
    order: Mapping[str, Any], meeting: Mapping[str, Any], path: Path, environ: Mapping[str, str]
) -> list[RankCommand]:
    """The commands and environments of this machine's ranks.

    Args:
        order: What `deepy.py` sent: script, slots, first rank, number of ranks, variables.
        meeting: Where the ranks of the run meet: ``address`` and ``port``.
        path: The file of the configuration.
        environ: The environment of this machine; the order's variables win.
    """
    shared = {**environ, **order["environ"]}
    slots: list[int] = order["slots"]
    indices = tuple(slots) if count_devices(shared) else ()
    shared.update(rank_device_environment(indices, shared))
    shared.pop("LOCAL_SIZE", None)  # with it DeepSpeed makes shared memory that nobody removes
    shared.update(
        MASTER_ADDR=str(meeting["address"]),
        MASTER_PORT=str(meeting["port"]),
        WORLD_SIZE=str(order["world_size"]),
        LOCAL_WORLD_SIZE=str(len(slots)),
    )
    argv = [sys.executable, "-u", order["script"], "--megatron_config", str(path)]
    return [
        RankCommand(argv, {**shared, "RANK": str(order["first_rank"] + i), "LOCAL_RANK": str(i)})
        for i in range(len(slots))
    ]


def _own_address() -> str | None:
    """The address at which `deepy.py` reached this machine; None if that was the loopback's."""
    words = os.environ.get("SSH_CONNECTION", "").split()
    address = words[2] if len(words) == 4 else LOOPBACK
    return None if address in ("::1",) or address.startswith("127.") else address


def _keep_output_open() -> None:
    """Puts pipes in front of standard output and error.

    When the connection ends, ranks that save can still write; what they write is then dropped.
    Standard input becomes empty: it was the link.
    """
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    for descriptor in (1, 2):
        outside = os.dup(descriptor)
        reader, writer = os.pipe()
        os.dup2(writer, descriptor)
        os.close(writer)
        threading.Thread(target=_pump, args=(reader, outside), daemon=True).start()


def _pump(reader: int, outside: int) -> None:
    while block := os.read(reader, 1 << 16):
        try:
            while block:
                block = block[os.write(outside, block) :]
        except OSError:
            continue  # nobody listens any more


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    code = main()
    time.sleep(0.2)  # the pumps carry the last lines
    sys.stdout.flush()
    os._exit(code)
