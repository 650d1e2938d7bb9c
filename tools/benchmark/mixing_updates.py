#!/usr/bin/env python
"""What one update of each mixing method costs, for few and for many domains.

Calls `MixtureController.observe` with made-up losses that fall, after a warm-up of the process:

- ordinary: the first decile, since other programs of the machine can only slow an update;
- slowest: the largest. It contains what a method does rarely, such as `ado` a fit of its laws.

Times are those of the processor. `skill_graph` needs a number per pair of domains and is left out
above 1000. `learning_curve` is measured three times: alone, with the guard, and with held-out
losses after each step, as no run has them: measuring 10,000 domains takes seconds. The rest of a
step is not timed. Exits with 1 when an ordinary update of a method alone takes over 100 us with 22
domains or 5 ms with 10,000; with more, 300 us and 20 ms.

    python -m tools.benchmark.mixing_updates [--mixer ado] [--domains 22 10000] [--updates 400]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from odm import Guard, HeldOutRecord, MixtureController, MixtureSchedule, Signal, make_mixer
from odm.methods import METHODS

MAX_SECONDS = {22: 100e-6, 10_000: 5e-3}
MAX_SECONDS_WITH_MORE = {22: 300e-6, 10_000: 20e-3}
WITH_MORE = ("guard", "heldout")
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


def measure(method: str, num_domains: int, *, updates: int, more: str = "") -> list[float]:
    """Seconds of each update of a method, with ``more`` of `WITH_MORE` or alone."""
    mixer = make_mixer(method, **options_for(method, num_domains))
    names = [f"domain_{k:05d}" for k in range(num_domains)]
    total = SKIPPED + updates
    guards = [Guard(total_steps=total, samples_per_step=num_domains)] if more == "guard" else []
    controller = MixtureController(
        names,
        mixer,
        MixtureSchedule(1, num_domains),
        guards,
        reward="heldout" if more == "heldout" else "train",
        total_steps=total,
    )
    record = HeldOutRecord([8] * num_domains, num_parts=8)
    rng = np.random.default_rng(1)
    floor, tokens = rng.uniform(1.0, 3.0, num_domains), np.full(num_domains, 512.0)
    seconds = []
    for step in range(1, total + 1):
        loss = floor + step**-0.3 * (1.0 + floor)
        held_out = None
        if more == "guard":
            controller.draw(step, num_domains)
        if more == "heldout":
            chosen = record.next_windows().domains
            held_out = record.update(step, loss[chosen] * 512.0, np.full(chosen.size, 512.0))
        signal = Signal.from_means(loss, tokens)
        start = time.process_time()
        controller.observe(step, signal, held_out=held_out)
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
    print(f"{'method':<26}{'domains':>8}{'ordinary':>10}{'slowest':>10}")
    rows = [(method, "") for method in args.mixer]
    if "learning_curve" in args.mixer:
        rows += [("learning_curve", more) for more in WITH_MORE]
    missed = []
    for method, more in rows:
        limits = MAX_SECONDS_WITH_MORE if more else MAX_SECONDS
        name = f"{method} + {more}" if more else method
        for num_domains in args.domains:
            if "transfer_matrix" in METHODS[method].required and num_domains > MOST_FOR_PAIRS:
                continue
            seconds = measure(method, num_domains, updates=args.updates, more=more)
            ordinary = float(np.quantile(seconds, 0.1))
            print(
                f"{name:<26}{num_domains:>8}{ordinary * 1e6:>10.0f}{max(seconds) * 1e6:>10.0f}",
                flush=True,
            )
            if ordinary > limits.get(num_domains, float("inf")):
                missed.append(f"{name} with {num_domains} domains")
    print(f"MISSED: {', '.join(missed)}" if missed else "PASS: all within the limits")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
