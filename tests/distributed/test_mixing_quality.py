"""A campaign of the mixing benchmark that is killed continues its runs and compares them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from megatron.checkpoint.format import checkpoint_steps
from megatron.checkpoint.lock import lock_save_folder
from megatron.reporting.run_log import find_run_log, read_run_log
from tests.distributed.runs import REPOSITORY

pytest.importorskip("tokenizers")
pytestmark = pytest.mark.distributed

ITERATIONS = 24
BASE = {
    **{"num_layers": 1, "hidden_size": 16, "num_attention_heads": 1, "pos_emb": "rotary"},
    **{"seq_length": 16, "max_position_embeddings": 16, "train_iters": ITERATIONS},
    **{"train_micro_batch_size_per_gpu": 4, "mixed_batches": True},
    **{"optimizer": {"type": "Adam", "params": {"lr": 0.01}}, "zero_optimization": {"stage": 0}},
    **{"lr_decay_style": "wsd", "lr_wsd_decay_fraction": 0.25, "lr_wsd_decay_style": "linear"},
    **{"checkpoint_factor": 1, "keep_last_n_checkpoints": 1},
    **{"eval_interval": 1, "max_validation_samples_per_dataset": 2},
    "max_test_samples_per_dataset": 2,
}
PLAN = {
    "base": BASE,
    "texts": {
        "S": {
            "seed": 1,
            "domains": {
                "counting": {"made": "counting", "train_bytes": 4000},
                "base64": {"made": "base64", "train_bytes": 4000, "noise": True},
            },
        }
    },
    "arms": {
        "uniform": {"settings": {"data_sampling_method": "static"}},
        "moving": {"settings": {"data_sampling_method": "smoothed_mean"}},
        "frozen": {"settings": {"data_sampling_method": "static"}, "average_of": "moving"},
    },
    "suites": {"S": {"text": "S", "seeds": {"moving": [1], "uniform": [1], "frozen": [1]}}},
}


def write_tokenizer(path: Path) -> None:
    """A tokenizer of bytes and of a few words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["Count from in steps of"] * 3, trainer)
    tokenizer.save(str(path))


def command(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Starts the benchmark with the plan of ``folder``."""
    places = {"plan": "plan.yml", "work": "work", "results": "results"}
    options = [part for key, name in places.items() for part in (f"--{key}", str(folder / name))]
    return subprocess.Popen(
        [sys.executable, "-m", "tools.benchmark.mixing_quality", *arguments, *options],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> str:
    """What the command printed, once it ended with 0."""
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    return output


def kill_in_the_middle(process: subprocess.Popen[str], runs: Path) -> None:
    """Kills the campaign with SIGKILL once the run ``moving`` has logged some iterations."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        logs = list(runs.glob("*/moving-*/run/logs/metrics.jsonl"))
        if any(log.read_bytes().count(b'"train"') >= 3 for log in logs):
            process.send_signal(signal.SIGKILL)
            process.wait()
            return
        time.sleep(0.005)
    raise AssertionError("the run did not begin")


def forget_last_validation(run: Path) -> None:
    """Leaves the run as if the kill had come between its last save and the validation after it."""
    (log,) = run.glob("logs/metrics.jsonl")
    last = max(checkpoint_steps(run))  # ``latest`` may still name the one before
    assert last < ITERATIONS, "the kill came after the end of the run"
    lost = f'{{"event": "validation", "iteration": {last},'
    kept = [line for line in log.read_text().splitlines(True) if not line.startswith(lost)]
    log.write_text("".join(kept))


def test_a_killed_campaign_continues_where_it_was(tmp_path):
    (tmp_path / "plan.yml").write_text(yaml.safe_dump(PLAN, sort_keys=False))
    write_tokenizer(tmp_path / "tokenizer.json")
    corpus = ["--corpus", str(tmp_path), "--tokenizer", str(tmp_path / "tokenizer.json")]
    finished(command(tmp_path, "prepare", *corpus))
    killed = command(tmp_path, "run")
    kill_in_the_middle(killed, tmp_path / "work/runs")
    killed.communicate()
    (run,) = tmp_path.glob("work/runs/*/moving-*/run")
    with lock_save_folder(run):  # its rank dies a moment after the campaign
        forget_last_validation(run)
    output = finished(command(tmp_path, "run"))
    assert "S/moving/1: continues\n" in output
    assert "S/frozen/1: done\n" in output
    results = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("results/*")}
    assert results.keys() == {"S-moving-1", "S-uniform-1", "S-frozen-1"}
    every = list(range(1, ITERATIONS + 1))
    assert all(result["iterations"] == every for result in results.values())
    assert all(os.path.getsize(path) < 30_000 for path in tmp_path.glob("results/*"))

    drawn = [entry["samples"] for entry in results["S-moving-1"]["domains"].values()]
    assert sum(drawn) == 4 * ITERATIONS
    (folder,) = tmp_path.glob("work/runs/S/frozen-1-*")
    assert yaml.safe_load((folder / "config.yml").read_text())["train_data_weights"] == drawn

    (folder,) = tmp_path.glob("work/runs/S/moving-1-*")
    assert b'"resume"' in find_run_log(folder / "run").read_bytes()
    steps = [e["iteration"] for e in read_run_log(folder / "run") if e["event"] == "train"]
    assert steps == list(range(1, ITERATIONS + 1))
    assert "| moving | bits per byte |" in finished(command(tmp_path, "report"))
    assert finished(command(tmp_path, "run")) == ""
