#!/usr/bin/env python
"""What one update of each mixing method costs, for few and for many domains.

Calls `MixtureController.observe` with made-up losses that fall, after a warm-up of the process:

- ordinary: the first decile, since other programs of the machine can only slow an update;
- slowest: the largest. It contains what a method does rarely, such as `ado` a fit of its laws.

Times are those of the processor. `skill_graph` needs a number per
pair of domains and is left out above 1000. Exits with 1 when an ordinary update of a method takes
over 100 us with 22 domains, or over 5 ms with 10,000.

    python -m tools.benchmark.mixing_updates [--mixer ado] [--domains 22 10000] [--updates 400]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from odm import MixtureController, MixtureSchedule, Signal, make_mixer
from odm.methods import METHODS

MAX_SECONDS = {22: 100e-6, 10_000: 5e-3}
MOST_FOR_PAIRS = 1000
SKIPPED = 5


def options_for(method: str, num_domains: int) -> dict[str, Any]:
    """What a method requires; which numbers does not matter for the time."""
    known = {
        "reference_losses": lambda: [1.0] * num_domains,
        "target_losses": lambda: [1.0] * num_domains,
        "transfer_matrix": lambda: np.eye(num_domains).tolist(),
    }
    return {name: known[name]() for name in METHODS[method].required}


def measure(method: str, num_domains: int, *, updates: int) -> list[float]:
    """Seconds of each update of a method."""
    mixer = make_mixer(method, **options_for(method, num_domains))
    names = [f"domain_{k:05d}" for k in range(num_domains)]
    controller = MixtureController(
        names, mixer, MixtureSchedule(1, num_domains), total_steps=SKIPPED + updates
    )
    rng = np.random.default_rng(1)
    floor, tokens = rng.uniform(1.0, 3.0, num_domains), np.full(num_domains, 512.0)
    seconds = []
    for step in range(1, SKIPPED + updates + 1):
        signal = Signal.from_means(floor + step**-0.3 * (1.0 + floor), tokens)
        start = time.process_time()
        controller.observe(step, signal)
        seconds.append(time.process_time() - start)
    return seconds[SKIPPED:]


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and judges; returns the exit code."""
    # methods on held-out losses need a measurement with each update
    methods = [name for name, facts in METHODS.items() if facts.signal != "held_out"]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mixer", nargs="+", choices=methods, default=methods)
    parser.add_argument("--domains", nargs="+", type=int, default=list(MAX_SECONDS))
    parser.add_argument("--updates", type=int, default=400, help="timed updates (%(default)s)")
    args = parser.parse_args(argv)
    if min(args.domains) < 2 or args.updates < 1:
        parser.error("--domains must be at least 2, --updates at least 1")
    print(f"microseconds of processor time per update, {args.updates} updates")
    print(f"{'method':<22}{'domains':>8}{'ordinary':>10}{'slowest':>10}")
    missed = []
    for method in args.mixer:
        for num_domains in args.domains:
            if "transfer_matrix" in METHODS[method].required and num_domains > MOST_FOR_PAIRS:
                continue
            seconds = measure(method, num_domains, updates=args.updates)
            ordinary = float(np.quantile(seconds, 0.1))
            print(
                f"{method:<22}{num_domains:>8}{ordinary * 1e6:>10.0f}{max(seconds) * 1e6:>10.0f}",
                flush=True,
            )
            if ordinary > MAX_SECONDS.get(num_domains, float("inf")):
                missed.append(f"{method} with {num_domains} domains")
    print(f"MISSED: {', '.join(missed)}" if missed else "PASS: all within the limits")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
