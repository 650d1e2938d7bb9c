"""Compares mixing methods in worlds of known learning curves.

    python -m odm.gym                              all methods that learn, all worlds, without
                                                   those that need losses or a matrix
    python -m odm.gym --mixer smoothed_mean --world plain noise_1 --seeds 5

One line per world and method: how far the run ends from one with uniform weights that drew from
the same seed, on average over the seeds. Negative numbers are better than uniform.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..methods import METHODS
from ..mixers import make_mixer
from .required_options import required_options
from .training import Outcome, best_static, outcome, train, train_static
from .worlds import WORLDS, World, make_world


@dataclass(frozen=True)
class Score:
    """A method in a world, as differences to uniform weights; means over seeds."""

    loss: float
    """Mean loss over the scored domains, in nats."""
    worst_loss: float
    """The largest of the seeds."""
    perplexity: float
    """Mean perplexity over the scored domains, as a share of uniform's."""
    worst_perplexity: float
    """The largest of the seeds."""
    noise_share: float
    """Samples that were noise, as a share of all (not a difference)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    methods = [
        name for name, method in METHODS.items() if method.learns and method.signal == "training"
    ]
    parser = argparse.ArgumentParser(
        prog="python -m odm.gym", description=(__doc__ or "").partition("\n")[0]
    )
    alone = [name for name in methods if not METHODS[name].required]
    parser.add_argument("--mixer", nargs="+", choices=methods, default=alone)
    parser.add_argument("--world", nargs="+", choices=list(WORLDS), default=list(WORLDS))
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind (%(default)s)")
    options = parser.parse_args(arguments)
    sys.stdout.write(
        f"{'world':<12} {'weights':<22} {'loss':>8} {'worst':>8} {'headroom':>8} "
        f"{'ppl %':>7} {'worst':>7} {'noise':>6}\n"
    )
    for name in options.world:
        world = make_world(name)
        sys.stdout.write(
            "".join(f"{line}\n" for line in _report(world, options.mixer, options.seeds))
        )
        sys.stdout.flush()
    return 0


def _report(world: World, mixers: Sequence[str], num_seeds: int) -> list[str]:
    seeds = range(1, num_seeds + 1)
    uniform = np.full(world.num_domains, 1.0 / world.num_domains)
    base = [train_static(world, uniform, seed=seed) for seed in seeds]
    best = best_static(world)
    oracle = score([outcome(world, best * world.num_samples, best)] * num_seeds, base)
    lines = [_line(world.name, "best for loss", oracle, oracle.loss)]
    best = best_static(world, perplexity_share=1.0)
    at_best = score([outcome(world, best * world.num_samples, best)] * num_seeds, base)
    lines.append(_line(world.name, "best for perplexity", at_best, oracle.loss))
    for mixer in mixers:
        method = make_mixer(mixer, **required_options(mixer, world))
        runs = [train(world, method, seed=seed) for seed in seeds]
        lines.append(_line(world.name, mixer, score(runs, base), oracle.loss))
        frozen = [
            train_static(world, run.samples, seed=seed)
            for run, seed in zip(runs, seeds, strict=True)
        ]
        lines.append(_line(world.name, "  its mean, frozen", score(frozen, base), oracle.loss))
    return lines


def score(runs: Sequence[Outcome], base: Sequence[Outcome]) -> Score:
    """Compares runs with those of uniform weights from the same seeds."""
    losses = [run.mean_loss - other.mean_loss for run, other in zip(runs, base, strict=True)]
    ratios = [
        run.mean_perplexity / other.mean_perplexity - 1.0
        for run, other in zip(runs, base, strict=True)
    ]
    return Score(
        float(np.mean(losses)),
        max(losses),
        float(np.mean(ratios)),
        max(ratios),
        float(np.mean([run.noise_share for run in runs])),
    )


def _line(world: str, weights: str, found: Score, headroom: float) -> str:
    share = f"{100 * found.loss / headroom:7.0f}%" if headroom < -1e-5 else f"{'-':>8}"
    return (
        f"{world:<12} {weights:<22} {found.loss:+8.4f} {found.worst_loss:+8.4f} {share} "
        f"{100 * found.perplexity:+7.2f} {100 * found.worst_perplexity:+7.2f} "
        f"{100 * found.noise_share:5.1f}%"
    )


if __name__ == "__main__":
    sys.exit(main())
