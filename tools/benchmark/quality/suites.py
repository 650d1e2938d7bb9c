"""Makes the texts of the suites and tokenizes them."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from megatron.data.metadata import DatasetMetadata, read_metadata
from megatron.data.splits import SPLITS
from megatron.files import write_json_atomic
from megatron.tokenizer import build_tokenizer
from megatron.tokenizer.documents import DocumentReader
from odm.json_data import read_json
from tools.benchmark.quality.plan import DomainText, PlanError, TextSet
from tools.benchmark.quality.texts import WordList, made_documents, whole_words
from tools.datasets import preprocess_data

__all__ = ["Corpus", "PreparedText", "prepare", "prepared_text", "text_manifest"]

HELD_OUT_BYTES = 200_000
"""Size of made held-out text."""

TOKENIZER = {"tokenizer_type": "HFTokenizer"}


@dataclass(frozen=True)
class Corpus:
    """Folders ``train``, ``valid`` and ``test`` with ``DOMAIN.jsonl[.zst]``, and a tokenizer."""

    folder: Path
    tokenizer_file: Path

    def documents(self, domain: str, split: str) -> list[str]:
        """All documents of a domain, in the order of the file.

        Raises:
            PlanError: If the corpus does not have the domain.
        """
        paths = [self.folder / split / f"{domain}.jsonl{end}" for end in (".zst", "")]
        found = [path for path in paths if path.is_file()]
        if not found:
            raise PlanError(f"{paths[0]}: there is no such file; --corpus names another folder")
        return [document.texts[0] for document in DocumentReader([str(found[0])])]

    def words(self) -> list[str]:
        """The words of the tokenizer that are one token each."""
        settings = SimpleNamespace(**TOKENIZER, vocab_file=str(self.tokenizer_file))
        tokenizer = build_tokenizer(settings)
        tokens = [tokenizer.detokenize([number]) for number in range(tokenizer.vocab_size)]
        return whole_words(tokenizer.tokenize, tokens)


@dataclass(frozen=True)
class PreparedText:
    """A tokenized text set."""

    folder: Path
    digest: str
    """Of all texts and the tokenizer."""
    tokenizer_file: str
    domains: dict[str, dict[str, Any]]
    """By domain: ``noise``, ``tokens`` by split, and for noise ``nats_per_token``, the entropy."""

    def paths(self, split: str) -> list[str]:
        """The prefixes of a split's datasets."""
        return [str(_prefix(self.folder, split, name)) + "_text_document" for name in self.domains]


def prepare(name: str, texts: TextSet, *, corpus: Corpus, folder: Path) -> PreparedText:
    """Makes and tokenizes a text set, unless it was made already from the same description.

    The files of the corpus are not compared; remove ``folder`` if they have changed.

    Args:
        name: For messages.
        texts: What to make.
        corpus: Source of real text, and the tokenizer.
        folder: Where the data go.
    """
    words = corpus.words()
    description: dict[str, Any] = {
        "spec": json.loads(json.dumps(asdict(texts))),
        "tokenizer_sha256": hashlib.sha256(corpus.tokenizer_file.read_bytes()).hexdigest(),
    }
    manifest = text_manifest(folder)
    if manifest.exists() and _read(manifest).get("made_from") == description:
        return prepared_text(folder)
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer_file = folder / "tokenizer.json"
    tokenizer_file.parent.mkdir(parents=True)
    shutil.copyfile(corpus.tokenizer_file, tokenizer_file)
    digest = hashlib.sha256(description["tokenizer_sha256"].encode())
    domains: dict[str, dict[str, Any]] = {}
    for domain, spec in texts.domains.items():
        print(f"{name}: {domain}", flush=True)
        entry: dict[str, Any] = {"noise": spec.noise, "tokens": {}}
        for split in SPLITS:
            documents = _documents(spec, split, seed=texts.seed, corpus=corpus, words=words)
            prefix = _prefix(folder, split, domain)
            text_digest = _tokenize(documents, prefix, tokenizer_file=tokenizer_file)
            digest.update(f"{split}/{domain}/{text_digest}".encode())
            metadata = read_metadata(f"{prefix}_text_document")
            assert metadata is not None
            entry["tokens"][split] = metadata.tokens
            if split == "test" and spec.noise:
                entry["nats_per_token"] = _entropy(spec, metadata, num_words=len(words))
        domains[domain] = entry
    write_json_atomic(
        manifest, {"made_from": description, "digest": digest.hexdigest(), "domains": domains}
    )
    return prepared_text(folder)


def _entropy(spec: DomainText, metadata: DatasetMetadata, *, num_words: int) -> float | None:
    """The smallest mean loss, in nats per token, that a model can have on noise; None: unknown.

    The end of a document is a token too, and taken as known.
    """
    if spec.made == "base64":  # 64 equally likely characters of one byte each
        return math.log(64) * metadata.text_bytes / metadata.tokens
    if spec.made == "words":
        return math.log(num_words) * (1 - metadata.documents / metadata.tokens)
    return None


def text_manifest(folder: Path) -> Path:
    """The file that describes a text; it is written last."""
    return folder / "text.json"


def prepared_text(folder: Path) -> PreparedText:
    """Reads what `prepare` made.

    Raises:
        PlanError: If nothing was prepared here.
    """
    manifest = text_manifest(folder)
    if not manifest.exists():
        raise PlanError(f"{manifest}: the text is not prepared; run the command prepare first")
    record = _read(manifest)
    return PreparedText(
        folder=folder,
        digest=record["digest"],
        tokenizer_file=str(folder / "tokenizer.json"),
        domains=record["domains"],
    )


def _read(manifest: Path) -> dict[str, Any]:
    return read_json(
        manifest,
        error=PlanError,
        what="description of a text",
        advice="remove it and run the command prepare again",
    )


def _prefix(folder: Path, split: str, domain: str) -> Path:
    return folder / split / domain / domain


def _documents(
    spec: DomainText, split: str, *, seed: int, corpus: Corpus, words: WordList
) -> Iterator[str]:
    size = spec.train_bytes if split == "train" else HELD_OUT_BYTES
    if spec.made:
        made = made_documents(spec.made, seed=seed, split=split, words=words)
        yield from _until(made, size)
        return
    chosen: list[str] = []
    for name in spec.corpus:
        documents = corpus.documents(name, split)
        if split == "train":
            first, last = (round(share * len(documents)) for share in spec.documents)
            documents = documents[first:last]
        chosen += documents[spec.part[0] :: spec.part[1]]
    yield from _until(iter(chosen), spec.train_bytes if split == "train" else None)


def _until(documents: Iterator[str], size: int | None) -> Iterator[str]:
    """Documents up to the one that reaches ``size`` bytes; all of them if it is None."""
    written = 0
    for document in documents:
        yield document
        written += len(document.encode())
        if size is not None and written >= size:
            return


def _tokenize(documents: Iterator[str], prefix: Path, *, tokenizer_file: Path) -> str:
    """Writes ``<prefix>_text_document`` and returns the digest of the text."""
    prefix.parent.mkdir(parents=True)
    source = prefix.with_suffix(".jsonl")
    digest = hashlib.sha256()
    with source.open("w", encoding="utf-8") as stream:
        for document in documents:
            line = json.dumps({"text": document}) + "\n"
            digest.update(line.encode())
            stream.write(line)
    preprocess_data.main(
        [
            *("--input", str(source), "--output-prefix", str(prefix), "--append-eod"),
            *("--tokenizer-type", TOKENIZER["tokenizer_type"], "--vocab-file", str(tokenizer_file)),
        ]
    )
    source.unlink()
    return digest.hexdigest()
