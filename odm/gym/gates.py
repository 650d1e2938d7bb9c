"""What ``learning_curve`` promises in every world, as checks that hold or fail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..mixers import LearningCurve
from .scores import score, uniform_runs
from .training import train
from .worlds import World

MAX_LOSS = 0.001
MAX_PERPLEXITY = 0.001
MAX_NOISE_RATIO = 1.5
MAX_MOVE = 0.001


@dataclass(frozen=True)
class Gate:
    """A check in one world; the value is that of the worst seed."""

    world: str
    claim: str
    value: float
    limit: float

    @property
    def holds(self) -> bool:
        """Whether the value is within the limit."""
        return self.value <= self.limit

    def __str__(self) -> str:
        verdict = "ok" if self.holds else "FAILED"
        return f"{self.world:<12} {self.claim:<40} {self.value:+8.4f} <= {self.limit:.4f} {verdict}"


def gates(world: World, seeds: Sequence[int]) -> list[Gate]:
    """Runs ``learning_curve`` and what it is compared with, and checks the results."""
    mixer = LearningCurve()
    base = uniform_runs(world, seeds)
    runs = [train(world, mixer, seed=seed) for seed in seeds]
    found = score(runs, base)
    checks = [
        Gate(world.name, "mean loss over uniform, nats", found.worst_loss, MAX_LOSS),
        Gate(
            world.name,
            "mean perplexity over uniform, share",
            found.worst_perplexity,
            MAX_PERPLEXITY,
        ),
    ]
    if world.is_homogeneous:
        move = max(float(np.abs(run.weights - 1.0 / run.weights.size).max()) for run in runs)
        return [*checks, Gate(world.name, "largest move of a weight", move, MAX_MOVE)]
    others = [train(world, "smoothed_mean", seed=seed) for seed in seeds]
    pairs = zip(runs, others, strict=True)
    excess = max(run.mean_loss - other.mean_loss for run, other in pairs)
    checks.append(Gate(world.name, "mean loss over smoothed_mean, nats", excess, 0.0))
    if world.is_noise.any():
        limit = MAX_NOISE_RATIO * float(world.is_noise.mean()) / mixer.max_ratio
        noise = max(run.noise_share for run in runs)
        checks.append(Gate(world.name, "share of the samples that are noise", noise, limit))
    return checks
