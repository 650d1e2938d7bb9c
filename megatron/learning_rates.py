"""Learning-rate schedules as a pure function of the number of applied optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Callable

from megatron.neox_arguments import RunConfig

__all__ = ["learning_rate_at", "learning_rate_schedule"]


def learning_rate_at(
    applied_steps: int,
    *,
    peak: float,
    minimum: float,
    decay_style: str,
    warmup_steps: float,
    decay_steps: int,
) -> float:
    """Learning rate of the next optimizer step, with GPT-NeoX's formulas.

    Args:
        applied_steps: Optimizer steps taken so far; steps skipped by fp16 overflow do not count.
        peak: Rate at the end of the warm-up.
        minimum: Floor after the warm-up.
        decay_style: ``constant``, ``linear``, ``cosine`` or ``exponential``.
        warmup_steps: Length of the linear warm-up; may be fractional.
        decay_steps: Step at which the decay ends; the rate stays there afterwards.
    """
    if warmup_steps > 0 and applied_steps <= warmup_steps:
        return peak * max(1, applied_steps) / max(1.0, warmup_steps)
    if decay_style == "constant":
        return peak
    span = max(1e-9, decay_steps - warmup_steps)
    progress = min(1.0, (applied_steps - warmup_steps) / span)
    if decay_style == "linear":
        rate = peak * (1.0 - progress)
    elif decay_style == "cosine":
        rate = minimum + (peak - minimum) / 2.0 * (math.cos(math.pi * progress) + 1.0)
    else:  # exponential: half of the peak at the end
        rate = peak * math.exp(-0.693 * progress)
    return max(rate, minimum)


def learning_rate_schedule(config: RunConfig) -> Callable[[int], float]:
    """Binds `learning_rate_at` to a run."""

    def schedule(applied_steps: int) -> float:
        return learning_rate_at(
            applied_steps,
            peak=config.derived.learning_rate,
            minimum=config.lr_scheduler.min_lr,
            decay_style=config.lr_scheduler.lr_decay_style,
            warmup_steps=config.derived.warmup_iters,
            decay_steps=config.derived.lr_decay_iters,
        )

    return schedule
