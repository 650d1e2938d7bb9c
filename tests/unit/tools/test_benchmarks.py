"""The benchmarks' arithmetic and command lines; their figures are for a quiet machine."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tools.benchmark import (
    attention_products,
    cold_reads,
    held_out_cost,
    loss_chunks,
    mixing_overhead,
    packed_memory,
    step_throughput,
    step_turns,
)
from tools.benchmark.processor import processor
from tools.benchmark.turns import interleaved_seconds

ROOT = Path(__file__).resolve().parents[3]


def costs(*, step: float = 0.5, **parts: float) -> mixing_overhead.Costs:
    return mixing_overhead.Costs({**dict.fromkeys(mixing_overhead.PARTS, 1e-4), **parts}, step)


BENCHMARKS = ["mixing_overhead", "held_out_cost", "loss_chunks", "generation_throughput"]
BENCHMARKS += ["step_turns", "packed_memory"]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_help_says_what_a_benchmark_measures(name):
    command = [sys.executable, "-m", f"tools.benchmark.{name}", "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0
    assert "usage:" in result.stdout


def test_recording_losses_is_shown_but_not_judged():
    assert costs(record=5e-3).judged == pytest.approx(4e-4)


@pytest.mark.parametrize(
    ("cost", "holds"),
    [
        (costs(), True),
        (costs(log=0.8e-3), False),  # 1.1 ms
        (costs(step=0.1), False),  # 0.4 % of the step
    ],
)
def test_both_bounds_decide(cost, holds):
    passed, sentence = mixing_overhead.verdict(cost)
    assert passed is holds
    assert sentence.startswith("PASS" if holds else "MISSED")


def test_the_table_shows_microseconds_and_shares():
    lines = mixing_overhead.table({10: costs()}, step_seconds=0.4).splitlines()
    assert lines[1].split() == ["10", "100", "100", "100", "100", "100", "400", "0.100%"]


@pytest.mark.parametrize("part", [0.4, 0.5])
def test_held_out_losses_are_judged_by_their_share_of_the_time(part):
    cost = held_out_cost.HeldOutCost(step=1.0, part=part, whole=8 * part, interval=40)
    holds, text = cost.report()
    assert holds is (part == 0.4)
    assert f"cost {cost.share:.2%} of the" in text
    assert cost.share == pytest.approx(part / (40 + part))


def test_the_stopwatch_adds_up_calls_of_an_iteration_and_skips_the_first():
    watch = mixing_overhead.Stopwatch()
    record = watch.timed("record", lambda value: value + 1)
    assert record(1) == 2
    watch.lap(9.0)
    for step_seconds in (1.0, 3.0, 2.0):
        watch.lap(step_seconds)
    result = watch.costs(skip=1)
    assert result.step == 2.0
    assert result.parts == dict.fromkeys(mixing_overhead.PARTS, 0.0)


def test_the_demo_settings_name_no_folder():
    settings = mixing_overhead.demo_settings()
    assert settings["train_batch_size"] == 32
    assert not {"save", "load", "data_sampling_method", "mixed_minibatches"} & settings.keys()


def test_all_ways_of_the_loss_agree():
    ways = loss_chunks.loss_ways(loss_chunks.make_inputs(tokens=96, hidden=8, vocab=50))
    losses = {name: way() for name, way in ways.items()}
    assert losses == pytest.approx(dict.fromkeys(ways, losses[loss_chunks.FULL]), rel=1e-6)


def test_the_round_that_warms_up_does_not_count():
    calls: list[str] = []
    ways = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    seconds = interleaved_seconds(ways, rounds=2)
    assert calls == ["a", "b"] * 3
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2}


class StandInWorker:
    def __init__(self, name: str, calls: list[str]):
        self.name, self.calls = name, calls

    def ask(self, request: str) -> float:
        self.calls.append(f"{self.name}.{request}")
        return float(len(self.calls))


def test_sides_take_turns_of_two_steps_of_which_the_second_counts():
    calls: list[str] = []
    sides = {name: StandInWorker(name, calls) for name in ("ours", "theirs")}
    times = step_throughput.measure(sides, [("ours", "step"), ("theirs", "step")], steps=2)
    assert calls == ["ours.step", "ours.step", "theirs.step", "theirs.step"] * 3
    assert times == [[6.0, 10.0], [8.0, 12.0]]  # the first turn warms up


@pytest.mark.parametrize("precision", step_throughput.SIDES)
def test_the_products_of_a_small_step_take_time(precision):
    job = step_throughput.Job(batch=1, seq_length=8, vocab_size=50, precision=precision)
    assert (
        step_throughput.product_seconds(step_throughput.Shape(1, 16, 2), job)(time.perf_counter) > 0
    )


def test_attention_is_compared_for_a_shape():
    numbers = attention_products.compare(1, (2, 8), 512, rounds=1).split()
    assert numbers[:3] == ["2", "8", "512"]
    ours, theirs, ratio = map(float, numbers[3:])
    assert min(ours, theirs, ratio) > 0


def test_the_processor_is_named_with_its_instructions_for_bfloat16(tmp_path):
    (tmp_path / "cpuinfo").write_text(
        "model name : A Processor\ncpu family : 6\nmodel : 143\nflags : fpu avx512_bf16 amx_bf16\n"
    )
    name = processor(cpuinfo=tmp_path / "cpuinfo")
    assert name.startswith("A Processor (family 6 model 143), AMX, AVX512-BF16, ")
    assert name.endswith(" cores")
    assert processor(cpuinfo=tmp_path / "nothing").endswith(" cores")


SIDE = """
import time
from dataclasses import dataclass

@dataclass
class Job:
    vocab_size: int
    precision: str

def our_side(shape, job=None):
    print("a message that is no answer")
    assert job in (None, Job(8192, "bfloat16"))
    return {{"step": lambda: time.sleep({seconds} / 2) or {seconds}, "end": lambda: None}}
"""


def write_version(folder: Path, seconds: float) -> Path:
    for package in ("megatron", "tools", "tools/benchmark"):
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").touch()
    (folder / "tools/benchmark/step_throughput.py").write_text(SIDE.format(seconds=seconds))
    return folder


def test_two_versions_step_in_turns(tmp_path):
    checkouts = write_version(tmp_path / "a", 0.5), write_version(tmp_path / "b", 0.75)
    lines = step_turns.compare("14M", checkouts, steps=3).splitlines()
    assert lines[0] == "14M: 3 turns"
    assert lines[1].split() == ["first", "500.0", "ms", "(median),", "500.0", "ms", "(best)"]
    assert lines[2].split()[:2] == ["second", "750.0"]
    assert "second / first: 1.500 (median of turns, 1.500 to 1.500), 1.500 (best" in lines[3]


def test_processor_time_does_not_count_what_others_take(tmp_path):
    checkouts = write_version(tmp_path / "a", 0.5), write_version(tmp_path / "b", 0.5)
    job = step_throughput.Job(vocab_size=8192, precision="bfloat16")
    lines = step_turns.compare("14M", checkouts, steps=1, job=job, request="processor").splitlines()
    milliseconds = [float(line.split()[1]) for line in lines[1:3]]
    assert max(milliseconds) < 100  # of the 250 that a step waits


def test_a_version_that_fails_ends_the_comparison(tmp_path):
    checkouts = write_version(tmp_path / "a", 0.5), write_version(tmp_path / "b", 0.75)
    (checkouts[1] / "tools/benchmark/step_throughput.py").write_text("raise SystemExit(3)")
    with pytest.raises(SystemExit, match="its process ended with 3"):
        step_turns.compare("14M", checkouts, steps=3)


def test_a_version_is_a_folder_or_a_commit(tmp_path):
    assert step_turns.checkout_of(str(tmp_path), tmp_path / "other") == tmp_path
    with pytest.raises(SystemExit, match="no-such-commit: is no folder and no commit"):
        step_turns.checkout_of("no-such-commit", tmp_path / "other")


def test_documents_have_the_length_that_is_asked_for(tmp_path):
    path = tmp_path / "text.bin"
    np.zeros(20_000, dtype=np.uint16).tofile(path)
    packed_memory._put_ends(path, 50)
    ends = (np.fromfile(path, dtype=np.uint16) == packed_memory.EOD).sum()
    assert 350 < ends < 450


def test_cold_reads_prints_each_way_and_leaves_no_file(tmp_path, capsys):
    sizes = ["--megabytes", "1", "--samples", "3", "--seq-length", "64", "--repeats", "2"]
    cold_reads.main([*sizes, "--folder", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    milliseconds = {line[:22].strip(): float(line[22:-3]) for line in lines[:4]}
    assert set(milliseconds) == set(cold_reads.WAYS)
    assert min(milliseconds.values()) > 0
    assert lines[4].startswith("as touched / asked for: ")
    assert not list(tmp_path.iterdir())
