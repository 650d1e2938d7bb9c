"""How `deepy.py` asks a job under Open MPI's mpirun to stop, with a program in its place."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.signals import take_defaults

ROOT = Path(__file__).resolve().parents[3]

# as mpirun: SIGUSR1 goes to the ranks, which save and end; SIGTERM kills them before that
STAND_IN = """
import signal, sys, time
def pass_on(number, frame):
    if sys.argv[1] == "saves":
        print("saved", flush=True)
        sys.exit(0)
def kill(number, frame):
    print("killed", flush=True)
    sys.exit(1)
signal.signal(signal.SIGUSR1, pass_on)
signal.signal(signal.SIGTERM, kill)
print("up", flush=True)
while True:
    time.sleep(0.05)
"""


def started(mode: str, *, grace_seconds: float) -> subprocess.Popen[str]:
    """`run_mpirun` in a process of its own, with a job that runs already."""
    program = (
        "import os, sys\n"
        "from megatron.launcher.open_mpi import run_mpirun\n"
        f"argv = [sys.executable, '-c', {STAND_IN!r}, {mode!r}]\n"
        f"sys.exit(run_mpirun(argv, os.environ, grace_seconds={grace_seconds}))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=take_defaults,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_job_that_is_asked_to_stop_saves(number):
    process = started("saves", grace_seconds=60)
    process.send_signal(number)
    assert process.communicate(timeout=60) == ("saved\n", None)
    assert process.returncode == 0


def test_a_job_that_does_not_stop_is_killed_after_the_grace():
    process = started("hangs", grace_seconds=0.1)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60) == ("killed\n", None)
    assert process.returncode == 1


def test_a_second_signal_kills_the_job_at_once():
    process = started("hangs", grace_seconds=600)
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1.5)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60) == ("killed\n", None)


def test_a_job_does_not_outlive_deepy():
    process = started("hangs", grace_seconds=600)
    process.kill()
    # the pipe ends when its last writer, the job, is gone
    assert process.communicate(timeout=60) == ("", None)
