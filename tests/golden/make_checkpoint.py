"""Makes a checkpoint that `test_golden_checkpoint.py` resumes: run it on the code of that time.

``python -m tests.golden.make_checkpoint`` trains eight iterations, keeps the checkpoint of the
fourth and the losses of the others, in a folder named after the version of the format. That of
version 1 was made before `resolved.json` had a version.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from megatron.checkpoint.schema import FORMAT_VERSION, READ_VERSIONS
from megatron.reporting.run_log import read_run_log
from tests.tiny import tiny_config, write_tiny_corpus

ROOT = Path(__file__).resolve().parents[2]
KEPT = {
    version: Path(__file__).resolve().parent / f"checkpoint_{version}" for version in READ_VERSIONS
}
"""Version of the format -> folder with a checkpoint and losses."""
SAVED, LAST = 4, 8


def write_run(folder: Path) -> None:
    """Writes data and configuration of the run; paths are relative, so that it can be anywhere."""
    paths = {
        split: [os.path.relpath(prefix, folder) for prefix in prefixes]
        for split, prefixes in write_tiny_corpus(folder / "corpus").items()
    }
    network = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "num_kv_heads": 1}
    config = tiny_config(
        paths,
        Path(),
        train_iters=LAST,
        checkpoint_factor=SAVED,
        no_weight_tying=False,
        norm="rmsnorm",
        hidden_dropout=0.1,
        warmup=0.25,
        min_lr=0.001,
        **network,
    )
    (folder / "run.yml").write_text(json.dumps(config, indent=1))


def train(folder: Path) -> str:
    """Trains to the last iteration in one process; returns what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "run.yml"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.returncode == 0, process.stdout
    return process.stdout


def losses(folder: Path) -> dict[str, Any]:
    """Loss, domain weights and learning rate of the iterations after the checkpoint."""
    events = read_run_log(folder / "run/logs/metrics.jsonl")
    keys = ("lm_loss", "weights", "learning_rate", "grad_norm")
    return {
        str(event["iteration"]): {key: event[key] for key in keys}
        for event in events
        if event["event"] == "train" and event["iteration"] > SAVED
    }


def main() -> None:
    """Replaces the kept checkpoint and losses of today's version."""
    kept = KEPT[FORMAT_VERSION]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_run(folder)
        train(folder)
        saved = f"global_step{SAVED}"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(folder / "run" / saved, kept / saved)
        (kept / "losses.json").write_text(json.dumps(losses(folder), indent=1) + "\n")


if __name__ == "__main__":
    main()
