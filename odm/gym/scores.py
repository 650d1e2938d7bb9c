"""How runs of a method compare with runs of uniform weights from the same seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..mixers import Mixer
from .training import Outcome, best_static, outcome, train, train_static
from .worlds import World


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


def uniform_runs(world: World, seeds: Sequence[int]) -> list[Outcome]:
    """Runs of uniform weights, one per seed."""
    weights = np.full(world.num_domains, 1.0 / world.num_domains)
    return [train_static(world, weights, seed=seed) for seed in seeds]


def best_scores(world: World, base: Sequence[Outcome]) -> tuple[Score, Score]:
    """Scores of the static mixtures that are best for mean loss and for mean perplexity."""
    found = []
    for perplexity_share in (0.0, 1.0):
        best = best_static(world, perplexity_share)
        end = outcome(world, best * world.num_samples, best)
        found.append(score([end] * len(base), base))
    return found[0], found[1]


def method_scores(
    world: World, mixer: Mixer, base: Sequence[Outcome], seeds: Sequence[int]
) -> tuple[Score, Score]:
    """Scores of a method, and of static weights that read as much of each domain as it did."""
    runs = [train(world, mixer, seed=seed) for seed in seeds]
    pairs = zip(runs, seeds, strict=True)
    frozen = [train_static(world, run.samples, seed=seed) for run, seed in pairs]
    return score(runs, base), score(frozen, base)
