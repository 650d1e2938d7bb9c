"""Open MPI's `mpirun` as a child process that is asked to stop in the one way that lets ranks save.

It kills its ranks one second after it gets SIGTERM. (``odls_base_sigkill_timeout`` of Open MPI 4.1
is this second; a higher value delays every end of a job by twice as much.) SIGUSR1 it passes on to
all ranks, which take it as a request to stop (`megatron.runtime.process_life`), and then it waits.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from functools import partial
from types import FrameType

from megatron.runtime.process_life import REPEAT_SECONDS, STOP_SIGNALS, die_with_parent

__all__ = ["run_mpirun"]

_POLL_SECONDS = 0.5


def run_mpirun(argv: Sequence[str], environ: Mapping[str, str], *, grace_seconds: float) -> int:
    """Runs ``argv`` to its end; the first of `STOP_SIGNALS` reaches the ranks as SIGUSR1.

    Another signal, `REPEAT_SECONDS` later or more, ends the run at once, and so does the end of
    ``grace_seconds``. If this process is killed, mpirun is killed too. Call it from the main
    thread.

    Returns:
        mpirun's exit code; 128 plus the number of the signal that ended it.

    Raises:
        OSError: If the program cannot be started.
    """
    process = subprocess.Popen(
        argv,
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C in a terminal would reach mpirun as well
        preexec_fn=partial(die_with_parent, os.getpid()),
    )
    asked_at: float | None = None

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal asked_at
        now = time.monotonic()
        if asked_at is None:
            asked_at = now
            process.send_signal(signal.SIGUSR1)
        elif now - asked_at >= REPEAT_SECONDS:
            process.terminate()

    previous = {
        number: signal.signal(number, pass_on)
        for number in STOP_SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        while True:
            try:
                code = process.wait(timeout=_POLL_SECONDS)
                return code if code >= 0 else 128 - code
            except subprocess.TimeoutExpired:
                if asked_at is not None and time.monotonic() - asked_at > grace_seconds:
                    process.terminate()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
