#!/usr/bin/env python
"""Trains one model on one mixture on many layouts and compares every iteration with one process.

Model, data and global batch are the same; only processes and ZeRO stage change. Prints, for each
layout, the largest relative difference of loss and gradient norm and the largest absolute
difference of a mixture weight over all iterations, and exits with 1 if one is above its limit.

Weights of K domains stay uniform for the first K ln K iterations: take more than these.

    python -m tools.benchmark.layout_matrix --data data/local/data.yml [--iterations 40]
        [--layouts single dp2 ...]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron.reporting.run_log import read_run_log

REPOSITORY = Path(__file__).resolve().parents[2]
REFERENCE = "single"

MODEL: dict[str, Any] = {
    "num_layers": 4,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "seq_length": 64,
    "max_position_embeddings": 64,
    "pos_emb": "rotary",
    "rotary_pct": 0.25,
    "gpt_j_residual": True,
    "no_weight_tying": True,
    "train_batch_size": 16,
    "train_micro_batch_size_per_gpu": 2,
    "optimizer": {"type": "Adam", "params": {"lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8}},
    "weight_decay": 0.1,
    "gradient_clipping": 1.0,
    "lr_decay_style": "cosine",
    "warmup": 0.05,
    "mixed_minibatches": True,
    "data_sampling_method": "smoothed_mean",
    "data_sampling_update_frequency": 1,
    "data_sampling_warmup_steps": 5,
    "eval_interval": 1_000_000,
    "max_validation_samples_per_dataset": 8,
    "max_test_samples_per_dataset": 8,
    "log_interval": 1,
    "seed": 1234,
}


@dataclass(frozen=True)
class Layout:
    """How a run is spread."""

    processes: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = 1e-4
    """Largest relative difference of the loss."""


def _zero(stage: int, **options: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": stage, **options}}


_TIGHT = {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0}

LAYOUTS: dict[str, Layout] = {
    REFERENCE: Layout(1, _zero(0)),
    "dp2": Layout(2, _zero(0)),
    "dp4": Layout(4, _zero(0)),
    "dp2-zero1": Layout(2, _zero(1)),
    "dp2-zero2": Layout(2, _zero(2)),
    "dp2-zero3": Layout(2, _zero(3)),
    "dp2-zero3-tight": Layout(2, _zero(3, **_TIGHT)),
    "tp2": Layout(2, {"model_parallel_size": 2}),
    "pp2": Layout(2, {"pipe_parallel_size": 2}),
    "tp2-pp2": Layout(4, {"model_parallel_size": 2, "pipe_parallel_size": 2}),
    "dp2-pp2": Layout(4, {"pipe_parallel_size": 2}),
    "dp2-tp2": Layout(4, {"model_parallel_size": 2}),
    "tp2-sp": Layout(2, {"model_parallel_size": 2, "sequence_parallel": True}),
    "dp2-tp2-zero1": Layout(4, {"model_parallel_size": 2, **_zero(1)}),
    "dp2-pp2-zero1": Layout(4, {"pipe_parallel_size": 2, **_zero(1)}),
    "dp2-tp2-zero3": Layout(4, {"model_parallel_size": 2, **_zero(3)}),
    "tp2-zero3": Layout(2, {"model_parallel_size": 2, **_zero(3)}),
    "tp2-pp2-sp": Layout(
        4, {"model_parallel_size": 2, "pipe_parallel_size": 2, "sequence_parallel": True}
    ),
    "bf16-single": Layout(1, {**_zero(1), "precision": "bfloat16"}, tolerance=2e-2),
    "bf16-dp2-zero2": Layout(2, {**_zero(2), "precision": "bfloat16"}, tolerance=2e-2),
    "bf16-tp2": Layout(
        2, {**_zero(1), "precision": "bfloat16", "model_parallel_size": 2}, tolerance=2e-2
    ),
    "bf16-pp2": Layout(
        2, {**_zero(1), "precision": "bfloat16", "pipe_parallel_size": 2}, tolerance=2e-2
    ),
}


def run(name: str, data: Path, iterations: int, folder: Path) -> list[dict[str, Any]]:
    """Trains one layout through ``./deepy.py`` and returns its train events."""
    layout = LAYOUTS[name]
    config = {
        **MODEL,
        **layout.settings,
        "global_num_gpus": layout.processes,
        "train_iters": iterations,
        "log_dir": str(folder / name),
    }
    file = folder / f"{name}.yml"
    file.write_text(json.dumps(config))
    command = [sys.executable, "deepy.py", "train.py", str(file), str(data.resolve())]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{name}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    events = [e for e in read_run_log(folder / name) if e["event"] == "train"]
    if len(events) != iterations:
        raise SystemExit(f"{name}: {len(events)} iterations in the log, expected {iterations}")
    return events


def relative_difference(events: list[dict], reference: list[dict], key: str) -> float:
    """Largest over all iterations of |a - b| / |b|."""
    return max(
        abs(a[key] - b[key]) / max(abs(b[key]), 1e-12)
        for a, b in zip(events, reference, strict=True)
    )


def weight_difference(events: list[dict], reference: list[dict]) -> float:
    """Largest absolute difference of a weight."""
    return max(
        abs(a["weights"][name] - b["weights"][name])
        for a, b in zip(events, reference, strict=True)
        for name in b["weights"]
    )


def main() -> int:
    """Trains all layouts and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="data.yml of prepare_data.py")
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    args = parser.parse_args()
    names = [REFERENCE, *(name for name in args.layouts if name != REFERENCE)]
    failures = 0
    print(
        f"{'layout':<18}{'loss rel':>11}{'norm rel':>11}{'weight abs':>12}{'seconds':>9}  last loss"
    )
    with tempfile.TemporaryDirectory() as folder:
        reference: list[dict[str, Any]] = []
        for name in names:
            start = time.perf_counter()
            events = run(name, args.data, args.iterations, Path(folder))
            reference = reference or events
            loss = relative_difference(events, reference, "lm_loss")
            norm = relative_difference(events, reference, "grad_norm")
            weight = weight_difference(events, reference)
            is_wrong = loss > LAYOUTS[name].tolerance
            failures += is_wrong
            print(
                f"{name:<18}{loss:11.1e}{norm:11.1e}{weight:12.1e}"
                f"{time.perf_counter() - start:9.1f}  {events[-1]['lm_loss']!r}"
                + ("  TOO LARGE" if is_wrong else ""),
                flush=True,
            )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
