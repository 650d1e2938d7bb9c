"""A run over several machines, with a stand-in for ssh that stays on this one: all end together."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from megatron.launcher.machine import Link
from tests.distributed.stand_in import StandInRun

SSH = """\
#!/bin/sh
# as ssh: drops its options and runs the command of "host" in a shell
while [ "$1" != "--" ]; do shift; done
if [ "$2" = nowhere ]; then echo "ssh: Could not resolve hostname nowhere" >&2; exit 255; fi
if [ "$2" = silent ]; then exec sleep 30; fi
exec sh -c "$3"
"""
LIMIT_S = 40.0

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(sys.platform != "linux", reason="the kernel's death signal is Linux's"),
]


class Run(StandInRun):
    """A run of the stand-in under ``deepy.py -H``."""

    def __init__(self, folder: Path, hosts: tuple[str, ...], **variables: str) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "ssh").write_text(SSH)
        (folder / "ssh").chmod(0o755)
        (folder / "hosts").write_text("".join(f"{host} slots=1\n" for host in hosts))
        here = {
            "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(folder),
            "DS_ACCELERATOR": "cpu",
        }
        options = ["-H", str(folder / "hosts")]
        super().__init__(folder, options=options, variables={**here, **variables})

    def saved(self) -> list[bool]:
        return [(self.folder / f"saved_{rank}").is_file() for rank in range(2)]


@pytest.fixture
def start(tmp_path):
    runs: list[Run] = []

    def make(*hosts: str, name: str = "run", **variables: str) -> Run:
        runs.append(Run(tmp_path / name, hosts or ("alpha", "beta"), **variables))
        return runs[-1]

    yield make
    for run in runs:
        if run.process.poll() is None:
            run.process.kill()
            run.process.wait()


def await_end(pids: list[int]) -> None:
    end = time.monotonic() + LIMIT_S
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < end, "ranks outlived the run"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_request_to_stop_saves_on_all_machines_and_leaves_another_run_alone(start, number):
    other, run = start(name="other"), start()
    others, pids = other.rank_pids(), run.rank_pids()
    run.process.send_signal(number)
    assert run.process.wait(LIMIT_S) == 0, run.errors.read_text()
    await_end(pids)
    assert run.saved() == [True, True]
    assert "saved at step" in (run.folder / "stdout").read_text()
    assert all(Path(f"/proc/{pid}").exists() for pid in others)
    assert other.saved() == [False, False]
    assert list((run.folder / "tmp").iterdir()) == []
    # the launcher of the other is killed: its ranks notice that, save and end
    other.process.kill()
    other.process.wait()
    await_end(others)
    assert other.saved() == [True, True]


def test_a_rank_that_fails_ends_the_ranks_of_the_other_machine(start):
    run = start(STAND_IN="fail:1", ODM_NEOX_X="1")
    pids = run.rank_pids()
    assert run.process.wait(LIMIT_S) == 1
    await_end(pids)
    assert "beta: deepy.py: rank 1 failed with exit code 1" in run.errors.read_text()
    assert "beta: [rank 1] RuntimeError: rank 1 meets its fate" in run.errors.read_text()
    assert run.saved() == [False, False]


def test_a_connection_that_is_cut_makes_the_whole_run_save(start):
    run = start()
    pids = run.rank_pids()
    path = Path(f"/proc/{run.process.pid}/task/{run.process.pid}/children")
    # the stand-in has become the shell of "beta", and that the machine's process: as sshd would,
    # its end leaves the ranks to the kernel; the other machine saves
    os.kill(int(path.read_text().split()[1]), signal.SIGKILL)
    code = run.process.wait(LIMIT_S)
    await_end(pids)
    assert code == 1
    assert run.saved()[0]
    assert "the connection to beta is lost" in run.errors.read_text()


def test_a_machine_that_cannot_be_reached_is_one_line_before_any_rank_starts(start):
    run = start("alpha", "nowhere")
    assert run.process.wait(LIMIT_S) == 2
    (line,) = run.errors.read_text().splitlines()
    assert line.startswith("host nowhere: cannot start there: ssh: Could not resolve hostname")
    assert not (run.folder / "pid_0").exists()


def test_silence_of_the_launcher_is_a_request_to_stop():
    reader, writer = os.pipe()
    link = Link(reader, silence_seconds=0.3)
    os.write(writer, b"first\nalive\n")
    assert link.read_line() == b"first"
    link.listen()
    assert link.stop_request() is None
    time.sleep(0.5)
    request = link.stop_request()
    assert request is not None
    assert request.reason.startswith("nothing heard from deepy.py for")
    assert not request.at_once
    assert request.since is not None
    assert time.monotonic() - request.since > 0.3  # the time of grace began with the silence
    os.close(writer)


def test_the_end_of_the_link_and_its_words_are_requests():
    for words, reason in ((b"stop\n", ""), (b"", "deepy.py, or the connection")):
        reader, writer = os.pipe()
        link = Link(reader)
        link.listen()
        os.write(writer, words)
        if not words:
            os.close(writer)
        end = time.monotonic() + 10
        while link.stop_request() is None and time.monotonic() < end:
            time.sleep(0.01)
        request = link.stop_request()
        assert request is not None
        assert request.reason.startswith(reason)
