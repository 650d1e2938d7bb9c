"""From the configuration to the data of a run: which files, which documents, which weights."""

import math
from collections.abc import Sequence
from typing import Protocol

from megatron.data.domain_files import DomainFiles, open_split, warn_of_training_files
from megatron.data.evaluation_batches import EvaluationBatches, EvaluationDomain
from megatron.data.gpt2_dataset import GPT2Dataset
from megatron.data.held_out import HeldOutSamples
from megatron.data.index_cache import IndexCache
from megatron.data.mixed_batches import MixedBatches
from megatron.data.shares import weights_by_num_docs
from megatron.data.splits import SplitName
from megatron.neox_arguments import ConfigError, RunConfig, require_training_data
from megatron.neox_arguments.rules.held_out import no_held_out_text_problem
from megatron.sizing.mixture import DomainSize, mixing_limits, shares_of_sizes, train_weights
from odm.controller import MixtureController
from odm.methods import METHODS
from odm.mixers import make_mixer
from odm.rewards import Reward
from odm.schedule import MixtureSchedule

__all__ = [
    "build_train_source",
    "build_evaluation_source",
    "build_controller",
    "build_held_out_source",
]


class TokenizerInfo(Protocol):
    """What the data need to know about the tokenizer."""

    @property
    def eod(self) -> int:
        """Id of the end of a document."""

    @property
    def vocab_size(self) -> int:
        """Number of ids without padding."""


def build_train_source(
    config: RunConfig, *, dp_rank: int, dp_size: int, tokenizer_info: TokenizerInfo
) -> tuple[MixedBatches, MixtureController]:
    """Builds the training data of one data-parallel rank, and the mixture that plans its batches.

    Args:
        config: The resolved configuration.
        dp_rank: Rank among the ``dp_size`` that read different data.
        dp_size: Number of data-parallel ranks.
        tokenizer_info: End-of-document id and vocabulary size.

    Returns:
        The batches, and the mixture of their domains; static weights are one that never learns.

    Raises:
        ConfigError: If there is no training data, or less than ``data_sampling_max_epochs`` needs.
        DataError: If a file is missing or damaged, a domain too short or its ids not in the
            vocabulary.
    """
    require_training_data(config)
    cache = IndexCache(config.data.cache_dir)
    domains = _open_split(config, "train", tokenizer_info, is_first=dp_rank == 0, cache=cache)
    datasets = [_make_gpt2_dataset(config, domain, cache) for domain in domains]
    if dp_rank == 0:
        cache.report()
    source = MixedBatches(
        datasets,
        dp_rank=dp_rank,
        dp_size=dp_size,
        micro_batch_size=config.batch.micro_batch_size,
        gradient_accumulation_steps=config.batch.gradient_accumulation_steps,
        eod_token=tokenizer_info.eod,
        eod_mask_loss=config.data.eod_mask_loss,
        tells_documents=config.model.tells_documents,
        vocab_size=tokenizer_info.vocab_size,
    )
    samples_per_epoch = source.samples_per_epoch.tolist()
    sizes = [
        DomainSize(domain.name, len(domain.dataset), samples)
        for domain, samples in zip(domains, samples_per_epoch, strict=True)
    ]
    mixture = build_controller(
        config, source.domains, train_weights(config, sizes), samples_per_epoch=samples_per_epoch
    )
    return source, mixture


def build_evaluation_source(
    config: RunConfig,
    split: SplitName,
    *,
    dp_rank: int,
    dp_size: int,
    tokenizer_info: TokenizerInfo,
    batch_size: int | None = None,
) -> EvaluationBatches | None:
    """Builds the evaluation data of one data-parallel rank.

    Each named data set is evaluated up to ``max_<split>_samples_per_dataset``; without it, up to
    the ``eval_iters`` batches if that key is set; else completely. Unnamed data get the
    ``eval_iters`` batches that GPT-NeoX evaluates, divided by their weights; a data set with weight
    0 is left out. The samples are spread evenly over a data set and depend on nothing else.

    Args:
        config: The resolved configuration.
        split: ``valid`` or ``test``.
        dp_rank: Rank among the ``dp_size`` that read different data.
        dp_size: Number of data-parallel ranks.
        tokenizer_info: End-of-document id and vocabulary size.
        batch_size: Samples of a batch of ``eval_iters``; None: the global batch of this
            configuration. A checkpoint that is read on other ranks keeps that of its training.

    Returns:
        Batches domain by domain; None if there is nothing to evaluate: no paths, no documents in
        this part of the data, or ``eval_iters`` 0.

    Raises:
        DataError: As ``build_train_source``.
    """
    if not config.data.use_named_eval_datasets and config.evaluation.iters < 1:
        return None
    is_first = dp_rank == 0
    domains = _open_split(config, split, tokenizer_info, is_first=is_first)
    if is_first:
        warn_of_training_files(config, split, domains)
    if not domains:
        return None
    limits = _evaluation_limits(
        config, split, domains, batch_size=batch_size or config.batch.train_batch_size
    )
    return _evaluation_batches(
        config,
        [
            _evaluation_domain(config, domain, limit)
            for domain, limit in zip(domains, limits, strict=True)
            if limit != 0
        ],
        dp_rank=dp_rank,
        dp_size=dp_size,
        tokenizer_info=tokenizer_info,
    )


def build_held_out_source(
    config: RunConfig,
    domains: Sequence[str],
    *,
    dp_rank: int,
    dp_size: int,
    tokenizer_info: TokenizerInfo,
) -> EvaluationBatches | None:
    """Builds the held-out windows of every training domain, for one data-parallel rank.

    The windows are samples of the validation data, spread evenly over each domain. They depend on
    nothing else, so they are the same in the whole run and on every layout.

    Args:
        config: The resolved configuration.
        domains: Names of the training domains; the windows have the same order.
        dp_rank: Rank among the ``dp_size`` that read different data.
        dp_size: Number of data-parallel ranks.
        tokenizer_info: End-of-document id and vocabulary size.

    Returns:
        Up to ``data_sampling_heldout_samples`` samples per domain; None if nothing is measured.

    Raises:
        ConfigError: If a domain has no validation data.
        DataError: As ``build_train_source``.
    """
    if config.mixing.heldout_interval is None:
        return None
    # where training evaluates, the same files are opened for that, and what is wrong is reported
    is_first = dp_rank == 0 and not config.evaluation.iters
    files = _open_split(config, "valid", tokenizer_info, is_first=is_first)
    found = {domain.name: domain for domain in files}
    missing = [name for name in domains if name not in found]
    if missing:
        raise ConfigError(no_held_out_text_problem(missing))
    return _evaluation_batches(
        config,
        [
            _evaluation_domain(config, found[name], config.mixing.heldout_samples)
            for name in domains
        ],
        dp_rank=dp_rank,
        dp_size=dp_size,
        tokenizer_info=tokenizer_info,
    )


def build_controller(
    config: RunConfig,
    domains: Sequence[str],
    weights: Sequence[float],
    *,
    samples_per_epoch: Sequence[int],
) -> MixtureController:
    """Builds the mixture that the configuration asks for.

    Args:
        config: The resolved configuration.
        domains: Names of the domains.
        weights: Raw initial weights, one per domain.
        samples_per_epoch: Samples of each domain.

    Raises:
        ConfigError: If no weights can keep the limits over the whole run.
    """
    method = config.mixing.method
    settings = {name: getattr(config.mixing, name) for name in METHODS[method].settings}
    options = {name: value for name, value in settings.items() if value is not None}
    if METHODS[method].needs_sizes(options):
        options["domain_sizes"] = tuple(samples_per_epoch)
    schedule = MixtureSchedule(
        config.launch.seed, len(domains), stratified=config.mixing.stratified
    )
    constraints = mixing_limits(config, samples_per_epoch)
    try:
        return MixtureController(
            domains,
            make_mixer(method, **options),
            schedule,
            constraints,
            reward=Reward(
                config.mixing.reward,
                batch_normalized=config.mixing.batch_normalized_reward,
                scaled_by_loss_diff=config.mixing.scale_by_reward_loss_diff,
            ),
            initial_weights=weights,
            warmup_steps=config.mixing.warmup_steps,
            # 0 is how GPT-NeoX files write "never", with no method; the static mixer never moves.
            update_frequency=max(1, config.mixing.update_frequency),
            total_steps=config.schedule.train_iters,
        )
    except ValueError as error:
        if not config.mixing.max_epochs:  # all other limits were checked without the data
            raise
        raise ConfigError(
            f"data_sampling_max_epochs: does not go with the other limits: {error}"
        ) from error


def _open_split(
    config: RunConfig,
    split: SplitName,
    tokenizer_info: TokenizerInfo,
    *,
    is_first: bool,
    cache: IndexCache | None = None,
) -> list[DomainFiles]:
    return open_split(
        config,
        split,
        vocab_size=tokenizer_info.vocab_size,
        fingerprint=getattr(tokenizer_info, "fingerprint", None),  # a stand-in may have none
        is_first=is_first,
        cache=cache or IndexCache(config.data.cache_dir),
    )


def _evaluation_batches(
    config: RunConfig,
    domains: Sequence[EvaluationDomain],
    *,
    dp_rank: int,
    dp_size: int,
    tokenizer_info: TokenizerInfo,
) -> EvaluationBatches:
    return EvaluationBatches(
        domains,
        dp_rank=dp_rank,
        dp_size=dp_size,
        micro_batch_size=config.batch.micro_batch_size,
        eod_token=tokenizer_info.eod,
        eod_mask_loss=config.data.eod_mask_loss,
        tells_documents=config.model.tells_documents,
        vocab_size=tokenizer_info.vocab_size,
    )


def _evaluation_domain(
    config: RunConfig, domain: DomainFiles, max_samples: int | None
) -> EvaluationDomain:
    samples = HeldOutSamples(
        domain.name,
        domain.prefix,
        domain.documents,
        domain.dataset,
        seq_length=config.data.seq_length,
        max_samples=max_samples,
    )
    return EvaluationDomain(samples, _text_bytes_per_token(domain))


def _text_bytes_per_token(domain: DomainFiles) -> float | None:
    metadata = domain.metadata
    if metadata is None or not metadata.tokens or not metadata.text_bytes:
        return None
    return metadata.text_bytes / metadata.tokens


def _make_gpt2_dataset(config: RunConfig, domain: DomainFiles, cache: IndexCache) -> GPT2Dataset:
    return GPT2Dataset(
        domain.name,
        domain.prefix,
        domain.documents,
        domain.dataset,
        None,
        config.data.seq_length,
        config.launch.seed,
        cache=cache,
    )


def _held_out_weights(
    config: RunConfig, split: SplitName, domains: Sequence[DomainFiles]
) -> list[float]:
    """Takes the weights of the configuration, or computes them from the sizes of the data."""
    if config.data.weight_by_num_documents:
        counts = [len(domain.dataset) for domain in domains]
        return weights_by_num_docs(counts, config.data.weighted_sampler_alpha)
    given = getattr(config.data, f"{split}_weights")
    if given:
        return [given[domain.number] for domain in domains]
    if config.data.train_weighting.rule == "unimax":  # nothing is repeated in an evaluation
        return [1.0] * len(domains)
    tokens = [domain.num_tokens for domain in domains]
    return shares_of_sizes(config, tokens, total_samples=sum(tokens))


def _evaluation_limits(
    config: RunConfig, split: SplitName, domains: Sequence[DomainFiles], *, batch_size: int
) -> list[int | None]:
    """Maximum number of samples of each domain: None for all, 0 if its weight is 0."""
    written = config.evaluation.named_iters
    if config.data.use_named_eval_datasets:
        limits = {
            "valid": config.data.max_validation_samples_per_dataset,
            "test": config.data.max_test_samples_per_dataset,
        }
        # 0 keeps training from evaluating; who evaluates by a command of its own means something
        otherwise = written * batch_size if written else None
        limit = limits[split] if limits[split] is not None else otherwise
        return [limit] * len(domains)
    weights = _held_out_weights(config, split, domains)
    total = config.evaluation.iters * batch_size
    return [math.ceil(total * weight / sum(weights)) for weight in weights]
