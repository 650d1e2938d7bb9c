"""Corpora of the Hugging Face hub that are plain data files with a field for their source."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from megatron.tokenizer.documents import lookup
from megatron.tokenizer.errors import DocumentError
from megatron.tokenizer.records import too_large
from tools.corpora.corpus import Corpus, DomainNames, LeftOut, Part, TextRecord

SHUFFLE_SEED = 0
SHUFFLE_BUFFER_DOCUMENTS = 2000
"""The shards are shuffled too, so that the first ones do not decide the domains."""


class HubCorpus(Corpus):
    """A dataset of the hub, streamed; `--input` reads a local copy of its files instead."""

    repository: ClassVar[str]
    text_key: ClassVar[str] = "text"
    domain_key: ClassVar[str]
    default_max_domain_bytes: ClassVar[int | None] = 50_000_000
    default_min_domain_bytes: ClassVar[int] = 100_000

    def parts(self) -> list[Part]:
        """A single part, because the domains are mixed in the stream."""
        source = self.options.input_path
        sources = () if source is None else (Path(source),)
        return [Part("hub", self._records, is_one_domain=False, sources=sources)]

    def _records(self, left_out: LeftOut) -> Iterator[TextRecord]:
        text_key = self.options.text_key or self.text_key
        domain_key = self.options.domain_key or self.domain_key
        path = self.options.input_path or self.repository
        names = DomainNames()
        for number, row in enumerate(_stream(path), start=1):
            try:
                text, domain = lookup(row, text_key), lookup(row, domain_key)
            except ValueError as error:
                raise DocumentError(
                    f"{path}: row {number}: {error}; set --text-key and --domain-key"
                ) from error
            if isinstance(text, str) and len(text) > self.options.max_record_bytes:
                self._problem(f"{path}: row {number}: {too_large(self.options.max_record_bytes)}")
                left_out.records += 1
            elif isinstance(text, str) and isinstance(domain, str):
                yield TextRecord(names.name_of(domain, where=f"{path}: row {number}"), text)
            else:
                self._problem(
                    f"{path}: row {number}: {text_key} and {domain_key} must be text, got "
                    f"{type(text).__name__} and {type(domain).__name__}"
                )
                left_out.records += 1

    def _problem(self, problem: str) -> None:
        if self.options.on_error == "fail":
            raise DocumentError(f"{problem}; pass --on-error skip")
        if self.options.report is not None:
            self.options.report(f"skipped {problem}")


class CommonPile(HubCorpus):
    """Common Pile v0.1, the filtered training mixture of the Comma models: about 30 sources."""

    description: ClassVar[str] = "Common Pile v0.1 (Comma training mixture), one domain per source"
    licence: ClassVar[str] = "public domain and open licences (Open Definition 2.1), see each row"
    repository: ClassVar[str] = "common-pile/comma_v0.1_training_dataset"
    urls: ClassVar[tuple[str, ...]] = (
        "https://huggingface.co/datasets/common-pile/comma_v0.1_training_dataset",
    )
    domain_key: ClassVar[str] = "source"


class CommonCorpus(HubCorpus):
    """Common Corpus of PleIAs: open culture, government, science, source code and web."""

    description: ClassVar[str] = "Common Corpus (PleIAs), one domain per open_type"
    licence: ClassVar[str] = "public domain and permissive licences, in the field license of a row"
    repository: ClassVar[str] = "PleIAs/common_corpus"
    urls: ClassVar[tuple[str, ...]] = ("https://huggingface.co/datasets/PleIAs/common_corpus",)
    domain_key: ClassVar[str] = "open_type"


def _stream(path: str) -> Iterator[dict[str, Any]]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DocumentError(
            "corpora of the hub need the package datasets; pip install datasets"
        ) from error
    try:
        # a stream keeps no data, but a lock file per dataset in the user's cache, for good
        with tempfile.TemporaryDirectory(prefix="prepare-data-") as cache:
            rows = load_dataset(path, split="train", streaming=True, cache_dir=cache)
            yield from rows.shuffle(seed=SHUFFLE_SEED, buffer_size=SHUFFLE_BUFFER_DOCUMENTS)
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DocumentError(
            f"{path}: cannot be loaded ({reason}); check the network, or give a local copy with "
            "--input"
        ) from error
