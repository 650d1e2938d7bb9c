"""What a run reads of each domain: weights by size, limits on them, and a table of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import odm
from megatron.data.shares import training_samples, weights_by_num_docs
from megatron.neox_arguments import ConfigError, RunConfig
from odm.static_weights import temperature_shares, unimax_shares
from odm.text_table import aligned

if TYPE_CHECKING:
    from odm.constraints import Constraint
    from odm.simplex import FloatArray

__all__ = [
    "DomainSize",
    "describe_mixture",
    "mixing_limits",
    "shares_of_sizes",
    "train_weights",
    "training_sizes",
]


@dataclass(frozen=True)
class DomainSize:
    """How much text of a domain there is for training."""

    name: str
    documents: int
    """Documents of the whole data set, also if ``split`` divides it."""
    samples: int
    """Samples of an epoch."""


def training_sizes(config: RunConfig) -> list[DomainSize]:
    """Sizes of the training domains, from the indexes of their files.

    Raises:
        DataError: If a file is missing or damaged.
    """
    names = config.data.train_domains or config.data.train_paths
    sizes = []
    for name, prefix in zip(names, config.data.train_paths, strict=True):
        documents, samples = training_samples(
            prefix, split=config.data.split, seq_length=config.data.seq_length
        )
        sizes.append(DomainSize(name, documents, samples))
    return sizes


def train_weights(config: RunConfig, sizes: Sequence[DomainSize]) -> list[float]:
    """Raw weights of the training domains at the start, before limits.

    Raises:
        ConfigError: If ``unimax`` allows fewer samples than the run draws.
    """
    if config.data.weight_by_num_documents:
        counts = [size.documents for size in sizes]
        return weights_by_num_docs(counts, config.data.weighted_sampler_alpha)
    if config.data.train_weights:
        return list(config.data.train_weights)
    total = config.schedule.train_iters * config.batch.train_batch_size
    return shares_of_sizes(config, [size.samples for size in sizes], total_samples=total)


def shares_of_sizes(
    config: RunConfig, samples: Sequence[int], *, total_samples: float
) -> list[float]:
    """Shares by the rule of ``train_data_weights`` that needs sizes.

    Args:
        config: The resolved configuration.
        samples: Samples of each domain.
        total_samples: Samples that will be drawn.

    Raises:
        ConfigError: If ``unimax`` allows fewer samples than are drawn.
    """
    weighting = config.data.train_weighting
    try:
        if weighting.rule == "unimax":
            assert weighting.value is not None
            return unimax_shares(samples, weighting.value, total_samples=total_samples)
        return temperature_shares(samples, weighting.value or 1.0)
    except ValueError as error:
        key = "train_data_weights"
        raise ConfigError(f"{key}: {error}", key=key) from error


def mixing_limits(config: RunConfig, samples_per_epoch: Sequence[int]) -> list[Constraint]:
    """The limits on weights that the configuration sets, and the guard.

    Args:
        config: The resolved configuration.
        samples_per_epoch: Samples of each domain.

    Raises:
        ConfigError: If ``data_sampling_max_epochs`` allows fewer samples than the run draws.
    """
    mixing = config.mixing
    found: list[Constraint] = []
    if mixing.min_weights:
        found.append(odm.Floor(mixing.min_weights))
    if mixing.max_weights:
        found.append(odm.Ceiling(mixing.max_weights))
    if mixing.groups:
        found.append(
            odm.GroupLimits(
                tuple(group.name for group in mixing.groups),
                tuple(
                    tuple(config.data.train_domains.index(name) for name in group.domains)
                    for group in mixing.groups
                ),
                tuple(group.minimum for group in mixing.groups),
                tuple(group.maximum for group in mixing.groups),
            )
        )
    if mixing.trust_region:
        found.append(odm.TrustRegion(**{f"max_{k}": x for k, x in mixing.trust_region.items()}))
    if mixing.guard is not None:
        steps, batch = max(1, config.schedule.train_iters), config.batch.train_batch_size
        found.append(
            odm.Guard(
                steps,
                batch,
                mixing.run_length,
                perplexity_share=mixing.perplexity_share,
                objective_weights=mixing.objective_weights,
            )
        )
    if mixing.max_epochs:
        total = config.schedule.train_iters * config.batch.train_batch_size
        limits = zip(mixing.max_epochs, samples_per_epoch, strict=True)
        # without a limit a domain may serve the whole run
        epochs = tuple(total / size if limit is None else limit for limit, size in limits)
        try:
            cap = epochs[0] if len(set(epochs)) == 1 else epochs
            found.append(odm.EpochCap(cap, tuple(samples_per_epoch), total))
        except ValueError as error:
            key = "data_sampling_max_epochs"
            raise ConfigError(f"{key}: {error}", key=key) from error
    return found


def describe_mixture(config: RunConfig) -> list[str]:
    """Lines of a table: weight, share, tokens and epochs of each domain; none for one data set.

    Raises:
        ConfigError: As ``train_weights`` and ``mixing_limits``.
        DataError: As ``training_sizes``.
    """
    if len(config.data.train_paths) < 2:
        return []
    sizes = training_sizes(config)
    raw = train_weights(config, sizes)
    shares = _mean_shares(config, raw, sizes)
    samples = config.schedule.train_iters * config.batch.train_batch_size
    rows = [
        [
            size.name,
            f"{weight:.6g}",
            f"{share:.4f}",
            f"{share * samples * config.data.seq_length:,.0f}",
            f"{share * samples / size.samples:.3g}" if size.samples else "-",
        ]
        for size, weight, share in zip(sizes, raw, shares, strict=True)
    ]
    table = [["domain", "weight", "share", "tokens", "epochs"], *rows]
    return [_heading(config, samples), *(f"  {line}" for line in aligned(table))]


def _heading(config: RunConfig, samples: int) -> str:
    weighting, method = config.data.train_weighting, config.mixing.method
    rule = "weight_by_num_documents" if config.data.weight_by_num_documents else weighting.rule
    detail = weighting.file if weighting.value is None else f"{weighting.value:g}"
    source = " ".join(filter(None, [rule, detail]))
    kind = {"static": "constant weights", "schedule": "mean over the run"}.get(
        method, f"initial weights, which {method} changes"
    )
    tokens = samples * config.data.seq_length
    return f"mixture of {tokens:,} tokens ({source}; {kind}):"


def _mean_shares(
    config: RunConfig, raw: Sequence[float], sizes: Sequence[DomainSize]
) -> Sequence[float]:
    """Shares over the whole run under the limits, if the weights do not follow the losses."""
    limits = mixing_limits(config, [size.samples for size in sizes])
    if not (config.mixing.points or limits):
        total = sum(raw)  # without numpy, whose import takes as long as the rest of a check
        return [weight / total for weight in raw]
    import numpy as np

    from odm.constraints import ConstraintContext, apply_constraints
    from odm.mixers.schedule import Schedule

    mixer = Schedule(config.mixing.points, config.mixing.interpolation)
    initial = np.array(raw, dtype=np.float64)

    def shares(step: float) -> FloatArray:
        proposal = mixer.weights_at(step, initial)
        context = ConstraintContext(proposal, np.zeros(len(sizes), dtype=np.int64))
        try:
            return apply_constraints(limits, proposal, context=context)[0]
        except ValueError as error:
            raise ConfigError(f"data_sampling_max_epochs: {error}") from error

    end = float(max(1, config.schedule.train_iters))
    corners = [0.0, *(at for at, _ in config.mixing.points if 0 < at < end), end]
    mean = np.zeros(len(sizes))
    for first, last in pairwise(corners):
        later = shares(last) if config.mixing.interpolation == "linear" else shares(first)
        mean += (shares(first) + later) * 0.5 * (last - first) / end
    return [float(share) for share in mean]
