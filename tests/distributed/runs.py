"""Training runs as a user starts them, in processes of their own, and what their logs say."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from megatron.checkpoint.format import CheckpointReader
from megatron.reporting.run_log import read_run_log
from tests.distributed.spawn import run_ranks
from tests.tiny import tiny_config

REPOSITORY = Path(__file__).resolve().parents[2]


def write_config(
    paths: dict[str, list[str]], folder: Path, *, processes: int = 1, **changes: Any
) -> Path:
    """Writes ``folder/run.yml`` and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "run.yml"
    config = tiny_config(paths, folder, global_num_gpus=processes, **changes)
    file.write_text(json.dumps(config, indent=1))
    return file


def start(config: Path) -> subprocess.Popen[str]:
    """Starts ``./deepy.py train.py config`` with one thread a rank, output to ``output.txt``."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(config.parent / "output.txt", "a") as output:
        return subprocess.Popen(
            [sys.executable, str(REPOSITORY / "deepy.py"), "train.py", str(config)],
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )


def train(config: Path, *, timeout_s: float = 120) -> None:
    """Trains to the end, in forks of a process that has loaded torch; fails with their errors.

    What ``deepy.py`` does about a run is for tests that `start` one.
    """
    ranks = run_ranks(
        "tests.distributed.many_runs:train_files",
        json.loads(config.read_text())["global_num_gpus"],
        keywords={"files": [str(config)]},
        timeout_s=timeout_s,
    )
    with open(config.parent / "output.txt", "a") as output:
        output.write(ranks[0].stdout + ranks[0].stderr)


def output_of(config: Path) -> str:
    """Console output of all processes of this configuration's runs so far."""
    return (config.parent / "output.txt").read_text()


def log_of(config: Path) -> Path:
    """The run log of this configuration."""
    return config.parent / "run" / "logs" / "metrics.jsonl"


def train_events(config: Path) -> dict[int, dict[str, Any]]:
    """The train event that counts, by iteration."""
    return {e["iteration"]: e for e in read_run_log(log_of(config)) if e["event"] == "train"}


def curve(config: Path) -> list[tuple]:
    """(iteration, lm_loss, losses, weights, tokens, learning rate, grad norm) of each iteration."""
    keys = ("lm_loss", "losses", "weights", "tokens", "learning_rate", "grad_norm")
    return [(step, *(event[key] for key in keys)) for step, event in train_events(config).items()]


def assert_same_state(one: Path, other: Path, *, same_length: bool = True) -> None:
    """Two checkpoints hold the same weights, moments and mixture, bit for bit.

    Runs that were to be of different length may say so in the mixture's configuration.
    """
    first, second = CheckpointReader(one), CheckpointReader(other)
    assert first.parameters.keys() == second.parameters.keys()
    for name in first.parameters:
        for kind in ("fp32", "exp_avg", "exp_avg_sq"):
            same = torch.equal(first.read_logical(name, kind), second.read_logical(name, kind))
            assert same, f"{kind} of {name}"
    mixtures = [json.loads((path / "mixture.json").read_text()) for path in (one, other)]
    for mixture in mixtures if not same_length else ():
        del mixture["configuration"]["total_steps"]
    assert mixtures[0] == mixtures[1]


def kill_at(config: Path, iteration: int, *, timeout_s: float = 120) -> None:
    """Starts a run and kills its launcher with SIGKILL once ``iteration`` is in the log."""
    process = start(config)
    deadline = time.monotonic() + timeout_s
    try:
        while time.monotonic() < deadline:
            assert process.poll() is None, f"ended early:\n{output_of(config)}"
            if log_of(config).exists() and _logged_by(log_of(config)) >= iteration:
                process.send_signal(signal.SIGKILL)
                process.wait()
                return
            time.sleep(0.005)
        raise AssertionError(f"iteration {iteration} not reached:\n{output_of(config)}")
    finally:
        process.kill()
        process.wait()


def _logged_by(path: Path) -> int:
    """Last iteration that the newest process logged."""
    last = 0
    for line in path.read_bytes().splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if event["event"] in ("start", "resume"):
            last = 0
        elif event["event"] == "train":
            last = event["iteration"]
    return last
