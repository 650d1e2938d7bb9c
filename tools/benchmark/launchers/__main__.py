#!/usr/bin/env python
"""Tries every launcher that is installed, for real, and prints what happens to a run under each.

    python -m tools.benchmark.launchers
    python -m tools.benchmark.launchers --only torchrun MPI

Two machines are made of namespaces of Linux (this needs root; all traffic stays here): with sshd
and Slurm where they are installed (Debian: openmpi-bin mpich slurm-wlm openssh-server). A tiny
model is trained by two CPU processes. Columns: seconds until its first iterations; losses equal to
those of `deepy.py` on one machine, bit for bit; after a request to stop: seconds until nothing is
left, the exit code of the launcher, and whether a checkpoint was written; the run that continues
from there; then the end of a run whose last rank, or whose launcher, gets SIGKILL. A launcher whose
program is missing is a row that reports it. The exit code is 1 unless all that was tried is good.
Only processes that this program started are ended, by their number.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from odm.text_table import aligned
from tools.benchmark.synthetic_run import write_random_domains

from .commands import LAUNCHERS, Launcher, Stop, missing_program
from .machines import Machines, missing_for_machines
from .services import environment, start_services
from .trial import Found, Outcome, Trial

COLUMNS = ("launcher", "start", "losses", "stop", "resume", "kill -9 of a rank", "launcher gone")


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; returns 1 if a launcher did not do what it should."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        nargs="+",
        action="extend",
        metavar="TEXT",
        help="rows whose name has one of these",
    )
    parser.add_argument("--keep", metavar="FOLDER", help="keeps the runs and their output there")
    options = parser.parse_args(arguments)
    if problem := missing_for_machines():
        print(f"launchers: {problem}", file=sys.stderr)
        return 2
    chosen = [
        launcher
        for launcher in LAUNCHERS
        if not options.only or any(text in launcher.name for text in options.only)
    ]
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="launchers-") as temporary:
        folder = Path(options.keep or temporary).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        found = _try_all(chosen, folder)
    rows = [_row(launcher, found[launcher.name]) for launcher in chosen]
    print("\n".join(aligned([COLUMNS, *rows])))
    good = [cell.is_good for f in found.values() for cell in f.outcomes.values()]
    return 0 if all(good) else 1


def _try_all(chosen: Sequence[Launcher], folder: Path) -> dict[str, Found]:
    """Tries the launchers, then compares their losses with a run as long as the longest."""
    prefixes = write_random_domains(
        folder / "data", num_domains=2, tokens_each=100_000, vocab_size=500
    )
    config = _configuration(prefixes, folder)
    found: dict[str, Found] = {}
    with Machines(folder / "machines") as machines:
        start_services(machines, machines.folder)
        path = environment(machines.folder)["PATH"]
        for number, launcher in enumerate(chosen):
            if problem := missing_program(launcher, path):
                found[launcher.name] = Found({"start": Outcome(problem, True)})
                continue
            trial = Trial(launcher, machines, folder / f"launcher_{number}", config)
            here = found[launcher.name] = trial.run()
            words = {column: cell.words for column, cell in here.outcomes.items()}
            print(f"{launcher.name}: {words}", file=sys.stderr, flush=True)
        longest = max((max({**f.first, **f.second}, default=0) for f in found.values()), default=0)
        if longest:
            trial = Trial(LAUNCHERS[0], machines, folder / "reference", config)
            reference = trial.straight(longest)
            for here in found.values():
                here.compare(reference)
    return found


def _row(launcher: Launcher, found: Found) -> tuple[str, ...]:
    cells = [
        found.outcomes.get(key, Outcome("", True))
        for key in ("start", "losses", "stop", "resume", "rank", "launcher")
    ]
    shown = [("" if cell.is_good else "BAD ") + cell.words for cell in cells]
    if launcher.stop != Stop("SIGTERM") and "stop" in found.outcomes:
        shown[2] = f"{launcher.stop.name}: {shown[2]}"
    return (launcher.name, *shown)


def _configuration(prefixes: Sequence[str], folder: Path) -> dict[str, Any]:
    """A run that lasts longer than any trial, with online data mixing."""
    return {
        "num_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "seq_length": 64,
        "max_position_embeddings": 64,
        "pos_emb": "rotary",
        "train_batch_size": 2,
        "train_micro_batch_size_per_gpu": 1,
        "train_iters": 20_000,
        "global_num_gpus": 2,
        "optimizer": {"type": "Adam", "params": {"lr": 0.001}},
        "lr_decay_style": "cosine",
        "zero_optimization": {"stage": 1},
        "train_data_paths": list(prefixes),
        "use_named_train_datasets": True,
        "mixed_minibatches": True,
        "data_sampling_method": "smoothed_mean",
        "data_sampling_update_frequency": 1,
        "tokenizer_type": "CharLevelTokenizer",
        "data_cache_dir": str(folder / "cache"),
        "eval_interval": 100_000,
        "log_interval": 1,
        "checkpoint_factor": 100_000,
        "distributed_timeout_minutes": 1,
    }


if __name__ == "__main__":
    # as the ranks that this starts: from the folder of train.py
    os.chdir(Path(__file__).resolve().parents[3])
    sys.exit(main())
