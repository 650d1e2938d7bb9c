"""The measures of a finished run, and the pairs of runs that are compared by them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tools.benchmark.quality.plan import Run
from tools.paired_runs import iterations_to_target

__all__ = [
    "BASELINE",
    "MEASURES",
    "SECOND_BASELINE",
    "Measure",
    "Measures",
    "Result",
    "Results",
    "curve",
    "iterations_ratio",
    "measures",
    "of_arm",
    "pairs_of",
]

BASELINE = "uniform"
SECOND_BASELINE = "smoothed_mean"

Result = Mapping[str, Any]
Results = Mapping[Run, Result]


@dataclass(frozen=True)
class Measures:
    """What a run is judged by, on test text, over the domains that are not noise."""

    bits_per_byte: float
    """Mean over domains: the primary measure."""
    loss: float
    """Mean over domains, in nats per token."""
    perplexity: float
    """Mean over domains of the perplexities."""
    worst_loss: float
    """The largest of the losses, in nats per token."""


def measures(result: Result) -> Measures:
    """Computes the measures of a result."""
    learnable = [entry for entry in result["domains"].values() if not entry["noise"]]
    losses = np.array([entry["test_loss"] for entry in learnable])
    return Measures(
        bits_per_byte=float(np.mean([entry["test_bits_per_byte"] for entry in learnable])),
        loss=float(losses.mean()),
        perplexity=float(np.exp(losses).mean()),
        worst_loss=float(losses.max()),
    )


def curve(result: Result, *, perplexity: bool) -> np.ndarray:
    """Mean validation loss, or perplexity, over the domains that are not noise, per validation."""
    entries = [entry for entry in result["domains"].values() if not entry["noise"]]
    losses = np.array([entry["validation_loss"] for entry in entries])
    return (np.exp(losses) if perplexity else losses).mean(axis=0)


def iterations_ratio(
    candidate: Result, baseline: Result, *, perplexity: bool, at_end: bool
) -> float | None:
    """Iterations of ``candidate`` to a value of ``baseline``, over the baseline's own iterations.

    Args:
        candidate: A run.
        baseline: A run of the same suite and seed.
        perplexity: Whether mean perplexity is compared, or mean loss.
        at_end: Whether the value is that after the decay of the learning rate, or the last one
            before the decay.

    Returns:
        Below 1 if the candidate is faster; None if it never gets there.
    """
    values = curve(baseline, perplexity=perplexity)
    iterations = np.array(baseline["iterations"])
    allowed = iterations if at_end else iterations[iterations <= baseline["stable_until"]]
    if not allowed.size:
        return None
    place = allowed.size - 1
    reached = iterations_to_target(
        candidate["iterations"], curve(candidate, perplexity=perplexity), values[place]
    )
    return None if reached is None else reached / float(iterations[place])


@dataclass(frozen=True)
class Measure:
    """A number of `Measures` as tables print it."""

    name: str
    of: Callable[[Measures], float]
    digits: int

    def interval(self, bounds: tuple[float, float] | None) -> str:
        """Both ends of an interval of differences; ``-`` where there is none."""
        return " to ".join(f"{end:+.{self.digits}f}" for end in bounds) if bounds else "-"


MEASURES = (
    Measure("bits per byte", lambda one: one.bits_per_byte, 4),
    Measure("loss", lambda one: one.loss, 4),
    Measure("perplexity", lambda one: one.perplexity, 2),
    Measure("worst loss", lambda one: one.worst_loss, 4),
)


def of_arm(results: Results, arm: str) -> dict[int, Result]:
    """The runs of an arm by seed, in ascending order."""
    return {run.seed: result for run, result in sorted(results.items()) if run.arm == arm}


def pairs_of(results: Results, arm: str, baseline: str) -> list[tuple[Result, Result]]:
    """Runs of two arms with the same seed, whatever processor made each.

    Another processor rounds differently, and that alone moves a run's end (the report shows by how
    much). But two arms draw different samples from the first update on, so their rounding has
    nothing in common on one processor either: a pair of two is as exact as a pair of one.
    """
    one, other = of_arm(results, arm), of_arm(results, baseline)
    return [(one[seed], other[seed]) for seed in one if seed in other]


def processor_of(result: Result) -> str:
    """The processor that made a run."""
    return str(result["machine"]["processor"])
