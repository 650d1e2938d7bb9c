#!/usr/bin/env python
"""What held-out losses cost, as a share of the training time, at the default interval.

Trains a model of the shape that a configuration file gives, on random tokens and 10 domains, with
``data_sampling_reward: heldout``, and compares the time of a measurement (one part of the held-out
windows) with that of the steps between two measurements. The first measurement, of all windows, is
listed apart: it happens once in a run. Exits with 1 if the share is over 1 %.

    python -m tools.benchmark.held_out_cost [--config configs/pythia/14M.yml] [--batch 16]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MAX_SHARE = 0.01
SHAPE = (
    *("num_layers", "hidden_size", "num_attention_heads", "pos_emb", "rotary_pct"),
    *("no_weight_tying", "gpt_j_residual", "norm", "activation"),
)
"""Keys of the file that are used."""


@dataclass(frozen=True)
class HeldOutCost:
    """Seconds of a step and of a measurement."""

    step: float
    part: float
    """A regular measurement, of one part."""
    whole: float
    """The first measurement, of all windows."""
    interval: int

    @property
    def share(self) -> float:
        """Share of the training time that regular measurements take."""
        return self.part / (self.part + self.interval * self.step)

    def report(self) -> tuple[bool, str]:
        """Whether the share is within the bound, and the sentences that report it."""
        holds = self.share <= MAX_SHARE
        return holds, (
            f"step {self.step * 1e3:.1f} ms; a part of the windows {self.part * 1e3:.1f} ms every "
            f"{self.interval} iterations; all windows, once, {self.whole * 1e3:.1f} ms\n"
            f"{'PASS' if holds else 'MISSED'}: held-out losses cost {self.share:.2%} of the "
            f"training time (at most {MAX_SHARE:.0%} asked for), "
            f"{self.part / self.step:.2f} steps per measurement"
        )


def measure(run: Any, windows: Any, *, steps: int, measurements: int) -> HeldOutCost:
    """Times steps of training and measurements of held-out losses, one after the other.

    Args:
        run: The run, see `synthetic_run`.
        windows: The held-out windows of its domains.
        steps: Steps that are timed; two more warm up.
        measurements: Measurements of a part that are timed.
    """
    from megatron.evaluation.held_out import HeldOutMeter
    from megatron.reporting.run_logger import RunLogger
    from megatron.training import train

    mixing = run.config.mixing
    logger = RunLogger(run.config, rank=1)  # only rank 0 writes
    meter = HeldOutMeter(windows, logger, interval=1, num_parts=mixing.heldout_parts)
    of_steps, of_parts = [], []
    for number in range(1, steps + 3):
        began = time.perf_counter()
        train(hooks=[], last_step=number, **run.loop_arguments())
        of_steps.append(time.perf_counter() - began)
    for number in range(1, measurements + 2):
        began = time.perf_counter()
        meter.after_step(run.runner, number, of_steps[-1])
        of_parts.append(time.perf_counter() - began)
    return HeldOutCost(
        step=statistics.median(of_steps[2:]),
        part=statistics.median(of_parts[1:]),
        whole=of_parts[0],
        interval=mixing.heldout_interval,
    )


def run_benchmark(arguments: argparse.Namespace) -> bool:
    """Prints the figures; returns whether the cost is within the bound."""
    import yaml

    from megatron.data.data_utils import build_held_out_source
    from megatron.neox_arguments import NeoXArgs, resolve
    from megatron.runtime.initialize import initialize_megatron, shutdown
    from tools.benchmark.synthetic_run import RandomTokens, make_run

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        written = yaml.safe_load(Path(arguments.config).read_text(encoding="utf-8"))
        settings = {
            **{key: written[key] for key in SHAPE if key in written},
            "seq_length": arguments.seq_length,
            "max_position_embeddings": arguments.seq_length,
            "train_batch_size": arguments.batch,
            "train_micro_batch_size_per_gpu": arguments.micro_batch,
            "train_iters": 1_000_000,
            "log_dir": str(folder / "logs"),
        }
        initialize_megatron(resolve(NeoXArgs.from_dict(settings), 1), handle_signals=False)
        try:
            run = make_run(
                folder,
                vocab_size=arguments.vocab_size,
                num_domains=arguments.domains,
                settings={**settings, "data_sampling_reward": "heldout"},
            )
            windows = build_held_out_source(
                run.config,
                run.mixture.domains,
                dp_rank=0,
                dp_size=1,
                tokenizer_info=RandomTokens(arguments.vocab_size),
            )
            cost = measure(run, windows, steps=arguments.steps, measurements=arguments.measurements)
        finally:
            shutdown()
    holds, text = cost.report()
    print(
        f"{arguments.config}, vocabulary {arguments.vocab_size}, {arguments.domains} domains, "
        f"{arguments.batch} samples of {arguments.seq_length} tokens per iteration"
    )
    print(text)
    return holds


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default=str(ROOT / "configs" / "pythia" / "14M.yml"))
    parser.add_argument("--vocab-size", type=int, default=50_304)
    parser.add_argument("--domains", type=int, default=10)
    parser.add_argument("--seq-length", type=int, default=256, help="%(default)s")
    parser.add_argument("--batch", type=int, default=32, help="samples per iteration (%(default)s)")
    parser.add_argument("--micro-batch", type=int, default=4, help="%(default)s")
    parser.add_argument("--steps", type=int, default=5, help="timed steps (%(default)s)")
    parser.add_argument("--measurements", type=int, default=5, help="timed parts (%(default)s)")
    return parser.parse_args(argv)


def main() -> int:
    """Measures and judges."""
    return 0 if run_benchmark(parse_arguments()) else 1


if __name__ == "__main__":
    sys.exit(main())
