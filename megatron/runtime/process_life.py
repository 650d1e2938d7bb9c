"""The life of a rank: it dies with its parent, and stops when it is asked to.

Standard library only, so that a rank can call it before the slow imports.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from types import FrameType

__all__ = [
    "PARENT_VARIABLE",
    "REPEAT_SECONDS",
    "STOP_SIGNALS",
    "bind_to_launcher",
    "die_with_parent",
    "handle_stop_signals",
    "stop_requested",
]

PARENT_VARIABLE = "ODM_NEOX_LAUNCHER_PID"
"""Set by our launcher for its ranks: the process that they must not outlive."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
STOP_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")  # the last is all that mpirun passes on
    if hasattr(signal, name)
)
"""Each is a request to save and stop, to a rank and to `deepy.py`."""

_POLL_SECONDS = 1.0

REPEAT_SECONDS = 1.0
"""Signals this soon after the first are the same request: Slurm and systemd signal every process of
a job, and a launcher passes on its own copy."""

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_stop_since: float | None = None


def die_with_parent(parent_pid: int) -> None:
    """Asks the kernel to kill this process when ``parent_pid`` dies; polls if it cannot.

    The request survives ``exec`` but not ``fork``, and it follows the *thread* that started this
    process, so the launcher starts ranks from its main thread. A parent that died before the
    request is noticed too.
    """
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)
    if _libc is None:
        threading.Thread(target=_exit_without, args=(parent_pid,), daemon=True).start()


def bind_to_launcher() -> bool:
    """Calls `die_with_parent` if our launcher, torchrun or DeepSpeed started this process.

    Returns:
        Whether there is a launcher to die with. A rank that a user, mpirun or srun started has
        none: ``mpirun`` and ``srun`` end their own processes, and a shell's background job is
        meant to outlive the shell.
    """
    launcher = os.environ.get(PARENT_VARIABLE)
    if launcher is not None and int(launcher) == os.getppid():
        die_with_parent(int(launcher))
        return True
    # torchrun sets TORCHELASTIC_RUN_ID, DeepSpeed's launcher LOCAL_SIZE; each is the parent itself
    if "TORCHELASTIC_RUN_ID" in os.environ or "LOCAL_SIZE" in os.environ:
        die_with_parent(os.getppid())
        return True
    return False


def handle_stop_signals() -> None:
    """Makes the first SIGTERM, SIGINT, SIGHUP or SIGUSR1 a request that `stop_requested` returns.

    Another one, `REPEAT_SECONDS` later or more, ends the process at once. A signal that is ignored
    on entry stays ignored (``nohup``). Call it from the main thread.
    """
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _note_stop)


def stop_requested() -> bool:
    """Returns whether this process was asked to stop; the loop agrees on it over all ranks."""
    return _stop_since is not None


def _note_stop(number: int, frame: FrameType | None) -> None:
    global _stop_since
    now = time.monotonic()
    if _stop_since is None:
        _stop_since = now
    elif now - _stop_since >= REPEAT_SECONDS:
        # no clean-up on purpose: the user insists; nor sys.stderr, which may be in use right now
        name = signal.Signals(number).name
        with contextlib.suppress(OSError):
            os.write(2, f"{name} again: ended at once, without a checkpoint\n".encode())
        os._exit(128 + number)


def _exit_without(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(_POLL_SECONDS)
    os._exit(1)
