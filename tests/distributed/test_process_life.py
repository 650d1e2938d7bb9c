"""Whatever dies, all of a run dies; who is asked to stop, saves first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.distributed.shared_memory import left_of, segments_of
from tests.distributed.stand_in import ROOT, STAND_IN, StandInRun

LIMIT_S = 10.0

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(sys.platform != "linux", reason="the kernel's death signal is Linux's"),
]


class Run(StandInRun):
    """A run of the stand-in under ``deepy.py``."""

    def __init__(self, folder: Path, **variables: str) -> None:
        super().__init__(folder, config={"num_gpus": 2}, variables=variables)
        self.segments: set[str] = set()

    def rank_pids(self) -> list[int]:
        """Waits until both ranks run and returns their process ids."""
        pids = super().rank_pids()
        self.segments = segments_of([self.process.pid, *pids])
        return pids

    def children(self) -> list[int]:
        """Waits for the launcher's first children and returns their process ids."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        end = time.monotonic() + 30
        while time.monotonic() < end:
            if pids := path.read_text().split():
                return [int(pid) for pid in pids]
            time.sleep(0.01)
        raise AssertionError(f"the ranks did not start: {self.errors.read_text()}")

    def ends(self, pids: list[int]) -> tuple[int, float]:
        """Waits until the launcher and ``pids`` are gone; returns exit code and seconds."""
        began = time.monotonic()
        code = self.process.wait(timeout=LIMIT_S)
        while any(is_running(pid) for pid in pids):
            assert time.monotonic() - began < LIMIT_S, "ranks outlived the run"
            time.sleep(0.02)
        return code, time.monotonic() - began

    def leaves_nothing(self) -> None:
        """Checks shared memory and the arguments' folder."""
        assert left_of(self.segments) == []
        assert list(self.temporary.glob("odm-neox-*")) == []


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


@pytest.fixture
def start(tmp_path):
    runs: list[Run] = []

    def make(**variables: str) -> Run:
        runs.append(Run(tmp_path, **variables))
        return runs[-1]

    yield make
    for run in runs:
        if run.process.poll() is None:
            os.killpg(run.process.pid, signal.SIGKILL)
            run.process.wait()


@pytest.mark.parametrize(
    ("number", "meets"), [(signal.SIGTERM, "1"), (signal.SIGINT, "0"), (signal.SIGHUP, "0")]
)
def test_a_request_to_stop_saves_on_every_rank_and_exits_with_0(start, number, meets):
    run = start(STAND_IN_MEETS=meets)
    pids = run.rank_pids()
    run.process.send_signal(number)
    code, seconds = run.ends(pids)
    print(f"{number.name}: {seconds:.2f} s")
    assert code == 0, run.errors.read_text()
    assert (run.folder / "saved_0").is_file()
    assert (run.folder / "saved_1").is_file()
    assert "saved at step" in (run.folder / "stdout").read_text()
    run.leaves_nothing()


def test_a_signal_to_every_process_at_once_counts_as_one_request(start):
    # Slurm and systemd signal all processes of a job; the launcher passes its copy on as well
    run = start()
    pids = run.rank_pids()
    for pid in [*pids, run.process.pid]:
        os.kill(pid, signal.SIGTERM)
    code, _ = run.ends(pids)
    assert code == 0, run.errors.read_text()


def test_kill_9_of_the_launcher_ends_every_rank(start):
    run = start()
    pids = run.rank_pids()
    run.process.kill()
    code, seconds = run.ends(pids)
    print(f"kill -9 of deepy.py: {seconds:.2f} s")
    assert code == -signal.SIGKILL
    assert left_of(run.segments) == []


@pytest.mark.parametrize("rank", [0, 1])
def test_kill_9_of_a_rank_ends_the_run_with_1(start, rank):
    run = start(STAND_IN_MEETS=str(rank))
    pids = run.rank_pids()
    os.kill(pids[rank], signal.SIGKILL)
    code, seconds = run.ends(pids)
    print(f"kill -9 of rank {rank}: {seconds:.2f} s")
    assert code == 1
    assert f"rank {rank} was killed by SIGKILL" in run.errors.read_text()
    run.leaves_nothing()


def test_kill_9_of_the_launcher_before_the_ranks_have_loaded_anything_ends_them(start):
    run = start()
    children = run.children()
    run.process.kill()
    run.ends(children)


def test_a_failing_rank_ends_the_others_and_is_heard_once(start):
    run = start(STAND_IN="fail:1", STAND_IN_MEETS="1")
    code, seconds = run.ends(run.rank_pids())
    print(f"failing rank: {seconds:.2f} s")
    said = run.errors.read_text()
    assert code == 1
    assert said.count("RuntimeError: rank 1 meets its fate") == 1
    assert "rank 1 failed with exit code 1" in said
    run.leaves_nothing()


def test_a_rank_that_refuses_the_input_makes_the_exit_code_2(start):
    run = start(STAND_IN="refuse:1")
    code, _ = run.ends(run.rank_pids())
    assert code == 2
    assert run.errors.read_text().count("data_path: refused by rank 1") == 1


def test_a_refusal_by_rank_0_is_the_only_line(start):
    run = start(STAND_IN="refuse:0")
    code, _ = run.ends(run.rank_pids())
    assert code == 2
    assert run.errors.read_text() == "data_path: refused by rank 0\n"


def test_a_deaf_run_is_killed_after_the_grace_period(start):
    run = start(STAND_IN="deaf", ODM_NEOX_GRACE_SECONDS="1")
    pids = run.rank_pids()
    run.process.terminate()
    code, seconds = run.ends(pids)
    assert code == 1
    assert 1.0 <= seconds < 4.0
    assert "did not end within 1 s" in run.errors.read_text()
    run.leaves_nothing()


def test_a_second_signal_ends_a_deaf_run_at_once(start):
    run = start(STAND_IN="deaf")
    pids = run.rank_pids()
    run.process.terminate()
    time.sleep(1.2)
    run.process.terminate()
    code, seconds = run.ends(pids)
    assert code == 143
    assert seconds < 2.0
    assert "SIGTERM again: the run is killed" in run.errors.read_text()


def test_what_a_rank_started_ends_with_it(start):
    run = start(STAND_IN="child")
    pids = run.rank_pids()
    children = [int((run.folder / f"child_{rank}").read_text()) for rank in range(2)]
    os.kill(pids[1], signal.SIGKILL)
    code, _ = run.ends(pids + children)
    assert code == 1


def test_a_stop_before_training_is_no_success(start):
    run = start(STAND_IN_MEETS="1")
    run.children()
    run.process.terminate()
    code, _ = run.ends([])
    assert code == 1
    assert "no checkpoint was written" in run.errors.read_text()


def test_the_folder_of_a_killed_launcher_is_removed_by_the_next(start, tmp_path):
    run = start()
    run.rank_pids()
    run.process.kill()
    run.process.wait()
    assert len(list(run.temporary.glob("odm-neox-*"))) == 1
    config = tmp_path / "run.yml"
    subprocess.run(
        [sys.executable, str(ROOT / "deepy.py"), "--dry-run", str(STAND_IN), str(config)],
        env={**os.environ, "TMPDIR": str(run.temporary)},
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    assert list(run.temporary.glob("odm-neox-*")) == []


def test_a_segment_that_a_process_holds_is_found_and_seen_as_left():
    program = (
        "from multiprocessing import shared_memory\n"
        "import time\n"
        "segment = shared_memory.SharedMemory(create=True, size=64)\n"
        "print(segment.name, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as it:
        assert it.stdout is not None
        name = it.stdout.readline().strip()
        held = segments_of([it.pid])
        left = left_of(held)
        it.kill()
    assert name in held
    assert left == [name]
