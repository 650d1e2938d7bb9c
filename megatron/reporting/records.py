"""What is known of a logged iteration, and the names of its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["TrainRecord", "train_scalars", "typical_seconds"]


@dataclass(frozen=True, kw_only=True)
class TrainRecord:
    """A logged training iteration. Dictionaries are keyed by domain and empty for unnamed data."""

    iteration: int
    consumed_samples: int
    consumed_tokens: int
    lm_loss: float
    """Loss of this iteration, in nats."""
    learning_rate: float
    seconds: float
    """Wall time of an iteration, the mean since the last record."""
    step_seconds: float
    """Wall time of a training step alone: `typical_seconds` of the newest steps."""
    samples_per_second: float
    tokens_per_second: float
    """Tokens of the whole run, all ranks together."""
    grad_norm: float | None = None
    loss_scale: float | None = None
    """fp16 only."""
    skipped_iterations: int = 0
    """Iterations since the start that an fp16 overflow skipped."""
    nan_iterations: int = 0
    weights: Mapping[str, float] = field(default_factory=dict)
    """Probability of each domain that this iteration drew with."""
    losses: Mapping[str, float | None] = field(default_factory=dict)
    """Token-weighted mean loss; None for a domain that was not drawn."""
    mean_losses: Mapping[str, float | None] = field(default_factory=dict)
    """Token-weighted mean loss since the last record; None for a domain not drawn since then."""
    tokens: Mapping[str, int] = field(default_factory=dict)
    """Tokens of this iteration."""
    epochs: Mapping[str, float] = field(default_factory=dict)
    """Passes over the domain's data since the start, fractions included."""
    iterations: Mapping[str, float] = field(default_factory=dict)
    """Share of all batches since the start, counted in whole batches."""
    rewards: Mapping[str, float] = field(default_factory=dict)
    """The mixer's estimate; empty for mixers without one."""
    reward_name: str = "_estimated_reward"
    """What the research code calls the estimate of this mixer."""


def typical_seconds(times: Sequence[float]) -> float:
    """Mean of the middle half of ``times``: one slow step, as the first, does not move it."""
    cut = (len(times) + 1) // 4
    middle = sorted(times)[cut : len(times) - cut]
    return sum(middle) / len(middle)


def train_scalars(record: TrainRecord, *, flops_per_second: float | None) -> dict[str, float]:
    """Names the numbers of ``record`` as GPT-NeoX and the research code do.

    Args:
        record: The iteration.
        flops_per_second: Of one device; left out when None.

    Returns:
        Metric name -> value. Times are in seconds; ``train/percent`` is a fraction, as ever.
    """
    values: dict[str, float | None] = {
        "train/lm_loss": record.lm_loss,
        "train/learning_rate": record.learning_rate,
        "train/grad_norm": record.grad_norm,
        "train/loss_scale": record.loss_scale,
        "train/consumed_samples": record.consumed_samples,
        "train/consumed_tokens": record.consumed_tokens,
        "runtime/samples_per_sec": record.samples_per_second,
        "runtime/tokens_per_sec": record.tokens_per_second,
        "runtime/iteration_time": record.seconds,
        "runtime/flops_per_sec_per_gpu": flops_per_second,
        "runtime/tflops_per_gpu": None if flops_per_second is None else flops_per_second / 1e12,
    }
    for prefix, by_domain in (
        ("train/loss", record.losses),
        ("train/iterations", record.iterations),
        ("train/epochs", record.epochs),
        ("train/_probabilities", record.weights),
        (f"train/{record.reward_name}", record.rewards),
    ):
        values.update({f"{prefix}/{name}": value for name, value in by_domain.items()})
    for name, count in record.iterations.items():
        values[f"train/percent/{name}"] = count / record.iteration
    return {name: value for name, value in values.items() if value is not None}
