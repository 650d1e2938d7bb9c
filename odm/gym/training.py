"""Runs of a mixing method in a world, and the best static mixture of a world."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..controller import MixtureController
from ..mixers import Mixer
from ..schedule import MixtureSchedule
from ..signal import Signal
from ..simplex import FloatArray, normalize
from .worlds import World

SAMPLE_TOKENS = 128
SEED_OF_LOSSES = 977


@dataclass(frozen=True, eq=False)
class Outcome:
    """Where a run ended."""

    held_out: FloatArray
    """Final losses in nats, shape (K,)."""
    samples: FloatArray
    """Samples read of each domain, shape (K,)."""
    weights: FloatArray
    """Weights at the end, shape (K,)."""
    mean_loss: float
    """Over the scored domains, in nats."""
    mean_perplexity: float
    """Mean over the scored domains of the exponential of the loss."""
    noise_share: float
    """Share of the samples that were noise."""


def train(world: World, mixer: Mixer | str, *, seed: int, warmup_steps: int = 0) -> Outcome:
    """Trains in a world with a method that learns, step by step, as a trainer would.

    Methods that learn from held-out losses get those of every step, without noise.

    Args:
        world: What losses follow from what was read.
        mixer: The method, or its registered name.
        seed: Of the drawn samples and of the losses' noise; the same for every method.
        warmup_steps: See `odm.MixtureController`.
    """
    schedule = MixtureSchedule(seed, world.num_domains)
    controller = MixtureController(
        world.domains,
        mixer,
        schedule,
        warmup_steps=warmup_steps,
        total_steps=world.num_steps,
    )
    noise = np.random.default_rng([seed, SEED_OF_LOSSES])
    samples = np.zeros(world.num_domains)
    for step in range(1, world.num_steps + 1):
        counts = controller.draw(step, world.num_slots).counts(world.num_domains).astype(float)
        losses = world.training(samples, step / world.num_steps)
        spread = world.sample_sd / np.sqrt(np.maximum(counts, 1.0))
        losses = losses + spread * noise.standard_normal(world.num_domains)
        samples += counts
        if controller.mixer.method.signal == "held_out":
            controller.observe(step, world.held_out(samples, step / world.num_steps))
        else:
            controller.observe(step, Signal.from_means(losses, counts * SAMPLE_TOKENS, counts))
    return outcome(world, samples, controller.weights)


def train_static(world: World, weights: FloatArray, *, seed: int) -> Outcome:
    """Trains with constant weights, shape (K,), on samples drawn as any run draws them."""
    weights = normalize(np.asarray(weights, dtype=np.float64))
    schedule = MixtureSchedule(seed, world.num_domains)
    samples = np.zeros(world.num_domains)
    for step in range(1, world.num_steps + 1):
        samples += schedule.draw(step, weights, world.num_slots).counts(world.num_domains)
    return outcome(world, samples, weights)


def outcome(world: World, samples: FloatArray, weights: FloatArray) -> Outcome:
    """What a run that has read these samples, shape (K,), is scored by."""
    held_out = world.held_out(samples)
    scored = held_out[world.is_scored]
    return Outcome(
        held_out,
        samples,
        weights,
        float(scored.mean()),
        float(np.exp(scored).mean()),
        float(samples[world.is_noise].sum() / samples.sum()),
    )


def best_static(world: World, perplexity_share: float = 0.0, *, rounds: int = 400) -> FloatArray:
    """The static weights, shape (K,), that end best; by exponentiated gradient descent.

    Args:
        world: Whose laws are known here.
        perplexity_share: What is to become small: 0 the mean loss, 1 the mean perplexity over that
            of uniform weights, between them that mix of the two.
        rounds: Steps of the search.
    """
    count = world.num_domains

    def scores(mixtures: FloatArray) -> FloatArray:
        ends = [outcome(world, mixture * world.num_samples, mixture) for mixture in mixtures]
        return np.array(
            [
                (1.0 - perplexity_share) * end.mean_loss
                + perplexity_share * end.mean_perplexity / scale
                for end in ends
            ]
        )

    uniform = np.full(count, 1.0 / count)
    scale = outcome(world, uniform * world.num_samples, uniform).mean_perplexity
    best, rate, width = uniform, 1.0, 1e-4
    value = scores(best[None])[0]
    for _ in range(rounds):
        moved = normalize_rows(best * np.exp(width * np.eye(count)))
        gradient = (scores(moved) - value) / width
        found = normalize(best * np.exp(-rate * gradient * count))
        reached = scores(found[None])[0]
        if reached < value:
            best, value, rate = found, reached, rate * 1.2
        else:
            rate *= 0.5
            if rate < 1e-4:
                break
    return best


def normalize_rows(table: FloatArray) -> FloatArray:
    """Divides each row of non-negative values by its sum."""
    return table / table.sum(axis=1, keepdims=True)
