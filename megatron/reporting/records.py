"""The numbers of a logged iteration, and their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

__all__ = ["CURVES", "TrainRecord", "train_scalars", "typical_seconds"]

_NOT_IN_THE_LOG = {"where": "in curves or on the console alone"}


@dataclass(frozen=True, kw_only=True)
class TrainRecord:
    """A logged training iteration: its line in the run log, and what only curves and console show.

    A number that is added here is logged under its name; an entry in `CURVES` adds a curve. Keys of
    dictionaries are domains; for unnamed data the dictionaries are empty.
    """

    iteration: int
    consumed_samples: int
    consumed_tokens: int
    lm_loss: float
    """Loss of this iteration, in nats."""
    grad_norm: float | None = None
    learning_rate: float
    loss_scale: float | None = None
    """Loss scale; None unless the precision is fp16."""
    tokens_per_second: float
    """Over all ranks, mean since the last record."""
    mfu: float | None = None
    """Model FLOPS as a share of the device's peak; None, and not logged, if the peak is unknown."""
    seconds: float
    """Wall time per iteration, mean since the last record."""
    step_seconds: float
    """Wall time of a training step without hooks: `typical_seconds` of the newest steps."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Probability of each domain with which this iteration's samples were drawn."""
    losses: Mapping[str, float | None] = field(default_factory=dict)
    """Token-weighted mean loss in this iteration; None for a domain that was not drawn."""
    mean_losses: Mapping[str, float | None] = field(default_factory=dict)
    """Token-weighted mean loss since the last record; None for a domain not drawn since then."""
    tokens: Mapping[str, int] = field(default_factory=dict)
    """Tokens of this iteration."""
    epochs: Mapping[str, float] = field(default_factory=dict)
    """Passes over the domain's data since the start, with fractions."""
    rewards: Mapping[str, float] = field(default_factory=dict)
    """The mixer's estimate; empty for mixers without one."""
    reward_name: str = field(default="_estimated_reward", metadata=_NOT_IN_THE_LOG)
    """Name of this mixer's estimate in the research code."""
    samples_per_second: float = field(metadata=_NOT_IN_THE_LOG)
    iterations: Mapping[str, float] = field(default_factory=dict, metadata=_NOT_IN_THE_LOG)
    """The domain's share of all batches since the start, counted in whole batches."""
    skipped_iterations: int = field(default=0, metadata=_NOT_IN_THE_LOG)
    """Iterations since the start whose optimizer step was skipped after an fp16 overflow."""
    nan_iterations: int = field(default=0, metadata=_NOT_IN_THE_LOG)

    def event(self) -> dict[str, Any]:
        """The line of the run log; without ``rewards`` if the mixer has no estimate, and without
        ``mfu`` if the peak is unknown.
        """
        numbers = {name: getattr(self, name) for name in _LOGGED}
        if self.mfu is None:
            del numbers["mfu"]
        if not self.rewards:
            del numbers["rewards"]
        return {"event": "train", **numbers}


_LOGGED = tuple(number.name for number in fields(TrainRecord) if not number.metadata)

CURVES = {
    "lm_loss": "train/lm_loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "loss_scale": "train/loss_scale",
    "consumed_samples": "train/consumed_samples",
    "consumed_tokens": "train/consumed_tokens",
    "samples_per_second": "runtime/samples_per_sec",
    "tokens_per_second": "runtime/tokens_per_sec",
    "mfu": "runtime/mfu",
    "seconds": "runtime/iteration_time",
    "losses": "train/loss",
    "iterations": "train/iterations",
    "epochs": "train/epochs",
    "weights": "train/_probabilities",
}
"""Field of a record -> name of its curve in GPT-NeoX and the research code. A field with a number
per domain has a curve per domain below that name."""


def typical_seconds(times: Sequence[float]) -> float:
    """Mean of the middle half of ``times``; one slow step, such as the first, has no effect."""
    cut = (len(times) + 1) // 4
    middle = sorted(times)[cut : len(times) - cut]
    return sum(middle) / len(middle)


def train_scalars(record: TrainRecord, *, flops_per_second: float | None) -> dict[str, float]:
    """The points of a record's curves, under the names of GPT-NeoX and the research code.

    Args:
        record: Record of the iteration.
        flops_per_second: FLOPS per device; None leaves this curve out.

    Returns:
        Metric name -> value. Times are in seconds; ``train/percent`` is a fraction, as in GPT-NeoX.
    """
    values = {curve: getattr(record, name) for name, curve in CURVES.items()}
    values[f"train/{record.reward_name}"] = record.rewards
    shares = record.iterations.items()
    values["train/percent"] = {name: count / record.iteration for name, count in shares}
    if flops_per_second is not None:
        values["runtime/flops_per_sec_per_gpu"] = flops_per_second
        values["runtime/tflops_per_gpu"] = flops_per_second / 1e12
    scalars = {}
    for curve, value in values.items():
        of_domains = value if isinstance(value, Mapping) else {"": value}
        for domain, number in of_domains.items():
            if number is not None:
                scalars[f"{curve}/{domain}" if domain else curve] = number
    return scalars
