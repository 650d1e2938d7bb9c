"""The data sets of a split: opened, checked and named."""

import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from megatron.data.errors import DataError
from megatron.data.index_cache import IndexCache
from megatron.data.indexed_dataset import MMapIndexedDataset, make_dataset
from megatron.data.metadata import DatasetMetadata, read_metadata
from megatron.data.open_files import reserve_open_files
from megatron.data.shares import split_boundaries
from megatron.data.splits import SPLITS, SplitName
from megatron.neox_arguments.run_config import RunConfig
from odm.wording import counted

logger = logging.getLogger(__name__)

FILES_PER_DOMAIN = 3  # tokens, index, order of the documents


@dataclasses.dataclass(frozen=True)
class DomainFiles:
    """One domain of one split."""

    name: str
    prefix: str
    dataset: MMapIndexedDataset
    metadata: DatasetMetadata | None
    documents: range | None
    """Documents of the split; None for all."""
    number: int
    """Position in the list of paths; a data set without a sample in the split is left out."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the split."""
        chosen = range(len(self.dataset)) if self.documents is None else self.documents
        return self.dataset.num_tokens(chosen)


def domain_name(prefix: str | Path) -> str:
    """Names a domain by the folder that holds it, or by its file where no folder is given."""
    path = Path(prefix)
    return path.parent.name or path.name


def open_split(
    config: RunConfig,
    split: SplitName,
    *,
    vocab_size: int,
    fingerprint: str | None = None,
    is_first: bool,
    cache: IndexCache | None = None,
) -> list[DomainFiles]:
    """Opens and checks the data sets of a split.

    Args:
        config: The resolved configuration.
        split: ``train``, ``valid`` or ``test``.
        vocab_size: Ids of this size or larger are refused if a sidecar reports them.
        fingerprint: SHA-256 of the tokenizer of this run; a warning names data sets that another
            tokenizer made. None does not compare.
        is_first: Whether this process reports for all ranks.
        cache: Where the results of scanning large indexes are kept; None scans them.

    Returns:
        One entry per domain; empty if ``split`` of ``data_path`` has nothing for this part.

    Raises:
        DataError: If a file is missing or damaged, or an id not in the vocabulary.
    """
    prefixes = getattr(config.data, f"{split}_paths")
    reserve_open_files(FILES_PER_DOMAIN * len(prefixes))
    domains = []
    names = _domain_names(config, split, prefixes)
    for number, (name, prefix) in enumerate(zip(names, prefixes, strict=True)):
        dataset = make_dataset(prefix, skip_warmup=not config.data.mmap_warmup, cache=cache)
        metadata = _checked_metadata(
            name, prefix, dataset, vocab_size=vocab_size, is_first=is_first
        )
        domains.append(DomainFiles(name, prefix, dataset, metadata, None, number))
    if is_first and fingerprint is not None:
        _warn_of_other_tokenizers(domains, fingerprint)
    if config.data.split is None:
        return domains
    parts = (
        _split_by_documents(config, split, domain, shares=config.data.split, is_first=is_first)
        for domain in domains
    )
    return [part for part in parts if part is not None]


def _split_by_documents(
    config: RunConfig,
    split: SplitName,
    whole: DomainFiles,
    *,
    shares: Sequence[float],
    is_first: bool,
) -> DomainFiles | None:
    """Takes the documents of ``split``; None, with a warning, for a held-out part without a sample.

    Raises:
        DataError: If no document is left for training.
    """
    part = SPLITS.index(split)
    boundaries = split_boundaries(shares, len(whole.dataset))
    documents = range(boundaries[part], boundaries[part + 1])
    if split == "train" and not len(documents):
        raise DataError(
            f"split: {config.data.split_text!r} leaves no training documents of {whole.prefix} "
            f"({counted(len(whole.dataset), 'document')}); raise the first share"
        )
    if not shares[part]:
        return None
    part_of = dataclasses.replace(whole, documents=documents)
    if split == "train" or part_of.num_tokens > config.data.seq_length:
        return part_of
    if is_first:
        logger.warning(
            "%s: split %r gives the %s part %s with %s, less than one sample of %d; it is not "
            "evaluated",
            whole.prefix,
            config.data.split_text,
            split,
            counted(len(documents), "document"),
            counted(part_of.num_tokens, "token"),
            config.data.seq_length + 1,
        )
    return None


def _domain_names(config: RunConfig, split: SplitName, prefixes: Sequence[str]) -> list[str]:
    """Takes the names of the configuration; unnamed data get the names of their folders."""
    named = list(getattr(config.data, f"{split}_domains"))
    if named:
        return named
    names = [domain_name(prefix) for prefix in prefixes]
    if len(set(names)) == len(names):
        return names
    # Nobody asked for names here; the numbers tell the data sets apart.
    return [f"{number}:{name}" for number, name in enumerate(names)]


def _checked_metadata(
    name: str, prefix: str, dataset: MMapIndexedDataset, *, vocab_size: int, is_first: bool
) -> DatasetMetadata | None:
    """Reads the sidecar, refuses ids outside the vocabulary, drops a sidecar of other data."""
    metadata = read_metadata(prefix)
    if metadata is None:
        return None
    if metadata.tokens != len(dataset.tokens):
        if is_first:
            logger.warning(
                "%s.meta.json: describes %d tokens, the data set has %d; not used",
                prefix,
                metadata.tokens,
                len(dataset.tokens),
            )
        return None
    if metadata.max_token_id >= vocab_size:
        raise DataError(
            f"{prefix}: domain {name} has token id {metadata.max_token_id}, the tokenizer of this "
            f"run has {vocab_size} ids (the data were made with {metadata.tokenizer.type}, "
            f"{metadata.tokenizer.vocab_size} ids); use one tokenizer for both"
        )
    return metadata


def _warn_of_other_tokenizers(domains: Sequence[DomainFiles], fingerprint: str) -> None:
    """Warns if ids of another vocabulary fit into this one, because they mean other text.

    This is not an error: a tokenizer file that was only reformatted has another digest too.
    """
    made_by = {
        domain.prefix: domain.metadata.tokenizer
        for domain in domains
        if domain.metadata is not None and domain.metadata.tokenizer.sha256 is not None
    }
    others = [prefix for prefix, made in made_by.items() if made.sha256 != fingerprint]
    if others:
        first = made_by[others[0]]
        logger.warning(
            "%s: tokenized with another tokenizer than this run's (%s, sha256 %.12s, not %.12s); "
            "its ids may mean other text here (%d of %d data sets); check vocab_file",
            others[0],
            first.type,
            first.sha256,
            fingerprint,
            len(others),
            len(domains),
        )


def warn_of_training_files(
    config: RunConfig, split: SplitName, domains: Sequence[DomainFiles]
) -> None:
    """Warns when a model would be evaluated on what it was trained on."""
    if config.data.split is not None:
        return
    trained_on = {os.path.realpath(path) for path in config.data.train_paths}
    seen = [domain for domain in domains if os.path.realpath(domain.prefix) in trained_on]
    if seen:
        logger.warning(
            "%s_data_paths: %s is training data too; the %s loss of domain %s says nothing about "
            "unseen text (%d of %d domains are affected)",
            split,
            seen[0].prefix,
            split,
            seen[0].name,
            len(seen),
            len(domains),
        )
