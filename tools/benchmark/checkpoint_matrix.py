#!/usr/bin/env python
"""Saves on each layout, loads on each other, and continues: 49 cells.

For every pair of layouts a run of 5 iterations on the first is loaded on the second. There it is
saved again at once, which must give the same master weights, moments and mixture bit for bit. Then
it continues for 5 iterations, whose losses must be those of the first layout's uninterrupted run:
to 1e-5 relative in fp32, to 2e-3 where one of the two is bf16. Exits with 1 if a cell fails.

    python -m tools.benchmark.checkpoint_matrix --data data/local/data.yml [--layouts ...]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

from megatron.checkpoint.format import CheckpointReader
from megatron.reporting.run_log import read_run_log
from tools.benchmark.layout_matrix import MODEL, REPOSITORY, Layout

SAVED_AT, LAST = 5, 10
MOMENTS = ("exp_avg", "exp_avg_sq")


def _zero(stage: int) -> dict[str, Any]:
    return {"zero_optimization": {"stage": stage}}


LAYOUTS = {
    "single": Layout(1, _zero(0)),
    "dp2-zero1": Layout(2, _zero(1)),
    "dp2-zero3": Layout(2, _zero(3)),
    "tp2": Layout(2, {"model_parallel_size": 2, **_zero(0)}),
    "pp2": Layout(2, {"pipe_parallel_size": 2, **_zero(0)}),
    "tp2-pp2": Layout(4, {"model_parallel_size": 2, "pipe_parallel_size": 2, **_zero(1)}),
    "bf16-dp2-zero2": Layout(2, {"precision": "bfloat16", **_zero(2)}, tolerance=2e-3),
}
FP32_TOLERANCE = 1e-5


def write_config(
    folder: Path, name: str, layout: Layout, data: dict[str, Any], **changes: Any
) -> Path:
    """Writes the configuration of the run ``name`` and returns the file."""
    run_folder = folder / name
    run_folder.mkdir(parents=True)
    config = {
        **MODEL,
        **data,
        **layout.settings,
        "global_num_gpus": layout.processes,
        "lr_decay_iters": LAST,
        "save": str(run_folder),
        "checkpoint_factor": 1000,
        **changes,
    }
    file = run_folder / "run.yml"
    file.write_text(json.dumps(config))
    return file


def run_all(files: list[Path], processes: int) -> None:
    """Trains configurations of one number of processes."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)),
        *("--standalone", "-m", "tools.benchmark.many_runs"),
        *map(str, files),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(
            f"exit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
        )


def losses(run: Path) -> dict[int, float]:
    """Loss of each iteration."""
    return {e["iteration"]: e["lm_loss"] for e in read_run_log(run) if e["event"] == "train"}


def differences_in_state(one: Path, other: Path) -> list[str]:
    """Names of everything that is not the same, bit for bit, in two checkpoints."""
    first, second = CheckpointReader(one), CheckpointReader(other)
    wrong = sorted(first.parameters.keys() ^ second.parameters.keys())
    for name in first.parameters.keys() & second.parameters.keys():
        for kind in ("fp32", *MOMENTS):
            if not torch.equal(first.read_logical(name, kind), second.read_logical(name, kind)):
                wrong.append(f"{kind} of {name}")
    if (one / "mixture.json").read_text() != (other / "mixture.json").read_text():
        wrong.append("mixture.json")
    return wrong


def check_cell(folder: Path, source: str, target: str) -> tuple[bool, str]:
    """Compares the results of a pair of layouts; returns whether they are right, and a text."""
    saved = folder / f"{source}-straight" / f"global_step{SAVED_AT}"
    resaved = folder / f"{source}-{target}-resaved" / f"global_step{SAVED_AT}"
    wrong = differences_in_state(saved, resaved)
    if wrong:
        return False, f"{len(wrong)} differ"
    want = losses(folder / f"{source}-straight")
    got = losses(folder / f"{source}-{target}-continued")
    largest = max(abs(got[i] - want[i]) / want[i] for i in range(SAVED_AT + 1, LAST + 1))
    is_bf16 = "bf16" in source + target
    return largest <= (2e-3 if is_bf16 else FP32_TOLERANCE), f"{largest:.1e}"


def train_cells(folder: Path, names: list[str], data: dict[str, Any]) -> None:
    """Runs everything that the table needs, by number of processes."""
    straight = {"train_iters": LAST, "extra_save_iters": [SAVED_AT]}
    for name in names:
        file = write_config(folder, f"{name}-straight", LAYOUTS[name], data, **straight)
        run_all([file], LAYOUTS[name].processes)
    for target in names:
        layout = LAYOUTS[target]
        files = []
        for source in names:
            load = {"load": str(folder / f"{source}-straight"), "iteration": SAVED_AT}
            for what, last in (("resaved", SAVED_AT), ("continued", LAST)):
                name = f"{source}-{target}-{what}"
                files.append(write_config(folder, name, layout, data, train_iters=last, **load))
        run_all(files, layout.processes)
        print(f"ran all cells that load on {target}", flush=True)


def main() -> int:
    """Trains all cells and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="data.yml of prepare_data.py")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    args = parser.parse_args()
    data = yaml.safe_load(args.data.read_text(encoding="utf-8"))
    failures = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train_cells(folder, args.layouts, data)
        print(f"\n{'saved on':<16}" + "".join(f"{target:>16}" for target in args.layouts))
        for source in args.layouts:
            row = f"{source:<16}"
            for target in args.layouts:
                is_right, word = check_cell(folder, source, target)
                failures += not is_right
                row += f"{word + ('' if is_right else ' !'):>16}"
            print(row)
    print(f"\nlargest relative difference of a loss after loading; {failures} cells failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
