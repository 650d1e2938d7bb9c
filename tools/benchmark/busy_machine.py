#!/usr/bin/env python
"""A training step while other programs use the cores, with short and long waits of threads.

    python -m tools.benchmark.busy_machine [--shape 14M] [--programs 0 2] [--steps 4]

The threads of an operator wait for each other. With OpenMP's default (`long`) a thread that waits
keeps its core for milliseconds, with ours (`short`, see `prepare_environment`) it soon sleeps. Both
train the same shape in a process of its own, in turns, beside so many programs that do nothing but
use a core. Prints the seconds of a step, and the ratio of the medians; above 1 ours is faster.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from tools.benchmark.processor import processor
from tools.benchmark.step_throughput import SHAPES, Job, measure, our_side
from tools.benchmark.workers import Worker

LONG = {"GOMP_SPINCOUNT": "300000"}
"""What GNU OpenMP does if nobody says anything."""
SIDES: dict[str, dict[str, str]] = {"short": {}, "long": LONG}
VOCAB_SIZE = 8192


@contextmanager
def busy(programs: int) -> Iterator[None]:
    """So many processes that use a core each."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_count, daemon=True) for _ in range(programs)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def _count() -> None:
    while True:
        pass


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="14M")
    parser.add_argument("--precision", choices=("fp32", "bfloat16"), default="fp32")
    parser.add_argument("--programs", type=int, nargs="+", default=[0, os.cpu_count() or 1])
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args()
    print(processor())
    job = Job(vocab_size=VOCAB_SIZE, precision=args.precision)
    sides: dict[str, Worker] = {}
    for name, variables in SIDES.items():
        with mock.patch.dict(os.environ, variables):  # for the process that starts
            sides[name] = Worker(our_side, args.shape, job)
    for programs in args.programs:
        with busy(programs):
            times = measure(sides, [(name, "step") for name in sides], args.steps)
        medians = dict(zip(sides, map(statistics.median, times), strict=True))
        print(
            f"{args.shape}, {args.precision}, beside {programs} programs: "
            + ", ".join(f"{name} waits {seconds:.2f} s" for name, seconds in medians.items())
            + f", ratio {medians['long'] / medians['short']:.2f}",
            flush=True,
        )
    for side in sides.values():
        side.ask("end")
        side.close()


if __name__ == "__main__":
    main()
