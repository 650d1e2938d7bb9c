"""The session that measures a GPU: what it runs, what it leaves out, and its table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from tools.benchmark import gpu_session
from tools.benchmark.gpu_session import FULL, Report, markdown, run_session

FIGURES = {
    "first_step_seconds": 9.0,
    "step_seconds": 0.1,
    "tokens_per_second": 1000.0,
    "peak_memory_bytes": 2_000_000_000,
    "flops_per_token": 1e9,
}


class Machine:
    """Stands in for the processes: each takes ``seconds``, and those that match fail."""

    def __init__(
        self,
        seconds: float,
        *,
        failing: str = "nothing fails",
        words: str = "Traceback\n  ...\ntorch.OutOfMemoryError: CUDA out of memory\n",
    ):
        self.seconds = seconds
        self.words = words
        self.failing = failing
        self.now = 0.0
        self.tasks: list[dict[str, Any]] = []

    def run(self, command: Sequence[str], timeout_s: float) -> tuple[int, str]:
        self.now += min(self.seconds, timeout_s)
        if command[1] == "pytest":
            return 0, "7 passed in 3.0s"
        task = json.loads(command[-1])
        self.tasks.append(task)
        if self.failing in command[-1]:
            return 1, self.words
        more = {"checkpoint": {"seconds": 2.5, "nbytes": 3_000_000_000}, "mixing_seconds": 5e-5}
        return 0, "noise\n" + json.dumps({**FIGURES, **(more if task["extras"] else {})})


@pytest.fixture(autouse=True)
def _everything_is_installed(monkeypatch):
    monkeypatch.setattr("megatron.model.compiling.compiler_problem", lambda device: None)


def session(machine: Machine) -> Report:
    report = Report("NVIDIA H200", 10e12, {"torch": "2"})
    return run_session(FULL, report, run=machine.run, clock=lambda: machine.now)


def test_a_session_measures_every_loop_of_every_shape():
    machine = Machine(5.0)
    report = session(machine)
    assert report.missing == []
    assert {shape: list(sides) for shape, sides in report.results.items()} == {
        shape: list(gpu_session.SIDES) for shape in ("1.4B", "410M", "160M")
    }
    assert machine.tasks[0]["shape"] == [24, 2048, 16]
    assert machine.tasks[0]["job"] == {
        **{"batch": 8, "seq_length": 2048, "vocab_size": 50304, "device": "gpu"},
        **{"precision": "bfloat16", "compiled": True},
    }
    text = markdown(report)
    # 1000 tokens/s of 10^9 operations on 10^13
    assert "| 1.4B | ours, compiled | 1,000 | 10.0% | 2.0 | 100.0 | 9.0 |" in text
    assert "mixing 22 domains takes 50 us per step on the host, 0.050% of our fastest" in text
    assert "a checkpoint of 3.00 GB takes 2.5 s" in text
    assert "7 passed" in text


def test_what_fails_is_named_and_the_rest_is_measured():
    report = session(Machine(5.0, failing='"side": "theirs"'))
    assert len(report.missing) == 6
    assert report.missing[0] == ("1.4B, transformers: torch.OutOfMemoryError: CUDA out of memory")
    assert all(list(sides) == ["ours, compiled", "ours"] for sides in report.results.values())
    assert "- 160M, transformers, compiled: torch.Out" in markdown(report)


def test_an_error_is_named_although_warnings_follow_it():
    machine = Machine(
        5.0, failing='"compiled": true', words="x.cpp:32: error: auto x\nx.h: 0xff,\n"
    )
    report = session(machine)
    assert report.missing[0] == "1.4B, ours, compiled: x.cpp:32: error: auto x"


def test_a_session_ends_in_time(monkeypatch):
    machine = Machine(1000.0)
    report = session(machine)
    assert machine.now <= FULL.seconds == 480
    assert report.missing[-1] == "160M, ours: no time was left"


def test_what_the_machine_lacks_is_named(monkeypatch):
    monkeypatch.setattr("megatron.model.compiling.compiler_problem", lambda device: "no Triton")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    report = session(Machine(5.0))
    assert report.missing.count("410M, ours, compiled: no Triton") == 1
    assert report.missing.count("410M, transformers: transformers is not installed") == 1
    assert [list(sides) for sides in report.results.values()] == [["ours"]] * 3


def test_without_a_gpu_the_session_says_so(capsys):
    assert gpu_session.main([]) == 2
    assert "no GPU" in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_session_runs_dry(tmp_path):
    assert gpu_session.main(["--dry", "--output", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "gpu-cpu-dry.json").read_text())
    assert report["missing"] == []
    assert report["results"]["tiny"].keys() == gpu_session.SIDES.keys()
    extras = report["results"]["tiny"]["ours"]
    assert extras["checkpoint"]["nbytes"] > 100_000
    assert 0 < extras["mixing_seconds"] < 1
    assert "| tiny | transformers |" in (tmp_path / "gpu-cpu-dry.md").read_text()
