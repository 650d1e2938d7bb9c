#!/usr/bin/env python
"""Peak memory of training on packed documents against the plain causal case, on Linux.

    python -m tools.benchmark.packed_memory [--seq_length 2048] [--documents 16 200 1000]

Each case trains some steps in a process of its own: with `reset_attention_mask` and
`reset_position_ids` on documents of about so many tokens, and without these keys. Prints the peak
of resident memory, its growth by the steps, and the ratios. The exit code is 1 if a peak is more
than 10 % above the causal case.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tools.benchmark.step_throughput import SHAPES, join_process_group
from tools.benchmark.workers import Answers, Worker

VOCAB_SIZE, EOD = 8192, 0
BATCH, STEPS = 2, 3
LIMIT = 1.1
PACKED = {"reset_attention_mask": True, "reset_position_ids": True}


def trained(shape_name: str, seq_length: int, document: int | None) -> Answers:
    """Trains in this process; ``document`` is the mean length, None the causal case."""
    from megatron.training import train
    from tools.benchmark.synthetic_run import make_run

    join_process_group()
    folder = tempfile.TemporaryDirectory()
    run = make_run(
        Path(folder.name),
        vocab_size=VOCAB_SIZE,
        num_domains=2,
        settings=_settings(shape_name, seq_length) | ({} if document is None else PACKED),
    )
    if document is not None:
        for path in Path(folder.name).rglob("*.bin"):
            _put_ends(path, document)
    before = _resident("VmRSS")
    for _ in range(STEPS):
        train(hooks=[], last_step=run.state.step + 1, **run.loop_arguments())
    peak = _resident("VmHWM")
    return {"peak": lambda: (peak, peak - before), "end": folder.cleanup}


def _settings(shape_name: str, seq_length: int) -> dict[str, Any]:
    shape = SHAPES[shape_name]
    return {
        "num_layers": shape.num_layers,
        "hidden_size": shape.hidden_size,
        "num_attention_heads": shape.num_attention_heads,
        "seq_length": seq_length,
        "max_position_embeddings": seq_length,
        "pos_emb": "rotary",
        "rotary_pct": 0.25,
        "gpt_j_residual": True,
        "no_weight_tying": True,
        "train_batch_size": BATCH,
        "train_micro_batch_size_per_gpu": BATCH,
    }


def _put_ends(path: Path, document: int) -> None:
    """Writes an end of a document at every ``document``-th token or so of a data file."""
    tokens = np.memmap(path, dtype=np.uint16, mode="r+")
    tokens[tokens == EOD] = EOD + 1
    tokens[np.random.default_rng(3).random(len(tokens)) < 1 / document] = EOD
    tokens.flush()


def _resident(name: str) -> float:
    # getrusage would count the parent's peak: a child starts on its memory
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 1024


def measure(shape_name: str, seq_length: int, document: int | None) -> tuple[float, float]:
    """MiB: the peak of a process, and how much of it came with the steps."""
    worker = Worker(trained, shape_name, seq_length, document)
    peak, growth = worker.ask("peak")
    worker.ask("end")
    worker.close()
    return peak, growth


def main() -> int:
    """Parses the command line and prints a table; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="14M")
    parser.add_argument("--seq_length", type=int, default=2048)
    parser.add_argument("--documents", type=int, nargs="+", default=[16, 200, 1000])
    args = parser.parse_args()
    print(f"{args.shape}, batch {BATCH} x {args.seq_length}, fp32")
    print(f"{'documents of':<14}{'peak MiB':>10}{'ratio':>8}{'growth MiB':>12}{'ratio':>8}")
    causal = measure(args.shape, args.seq_length, None)
    print(f"{'(causal)':<14}{causal[0]:10.0f}{1:8.3f}{causal[1]:12.0f}{1:8.3f}", flush=True)
    is_within = True
    for document in args.documents:
        peak, growth = measure(args.shape, args.seq_length, document)
        ratios = peak / causal[0], growth / causal[1]
        print(
            f"{document:<14}{peak:10.0f}{ratios[0]:8.3f}{growth:12.0f}{ratios[1]:8.3f}", flush=True
        )
        is_within = is_within and ratios[0] <= LIMIT
    return 0 if is_within else 1


if __name__ == "__main__":
    sys.exit(main())
