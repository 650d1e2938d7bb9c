"""Writes the text of a corpus as one jsonl file per domain and split; finished parts are kept.

``<text>/<split>/<domain>.jsonl`` holds the documents, ``<text>/<part>.part.json`` is written when a
part is complete and describes its content.
"""

import dataclasses
import errno
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from megatron.data.splits import SPLITS, SplitName
from megatron.files import atomic_writer
from megatron.tokenizer.errors import DocumentError
from megatron.tokenizer.inputs import files_below
from megatron.tokenizer.left_out import LeftOutFiles
from megatron.tokenizer.progress import TextProgress
from odm.wording import counted
from tools.corpora.corpus import Corpus, LeftOut, Part, TextRecord
from tools.datasets.splitting import assign_splits, digest_of

FEWEST_DOCUMENTS = 3
PATIENCE_DOCUMENTS = 50_000
"""A mixed stream ends when so many documents in a row found their domains full."""


@dataclass(frozen=True)
class SplitText:
    """The text of one domain and split: its file and what it holds."""

    domain: str
    split: SplitName
    path: Path
    documents: int
    text_bytes: int
    sha256: str
    """Digest of the file: texts of the same size may differ."""


@dataclass
class _Domain:
    """A domain while its text is gathered into a spool file."""

    spool: BinaryIO
    digests: list[bytes] = field(default_factory=list)
    sizes_bytes: list[int] = field(default_factory=list)
    given_splits: list[SplitName | None] = field(default_factory=list)
    text_bytes: int = 0
    num_duplicates: int = 0
    num_empty: int = 0

    def dropped(self) -> str:
        """Text about how many documents were dropped; empty if none were."""
        counts = {"duplicates": self.num_duplicates, "empty": self.num_empty}
        said = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        return f"; {said} left out" if said else ""


def gather(
    corpus: Corpus, folder: Path, *, tell: Callable[[str], None]
) -> tuple[list[SplitText], LeftOut]:
    """Gathers the text of all parts that are not finished yet, or whose sources have changed.

    Exact duplicates (except for white space) in the corpus are dropped and counted. So if a part is
    gathered again, all later parts are gathered again too. A domain that is smaller than the
    corpus's minimum is left out and reported.

    Args:
        corpus: Where the text comes from.
        folder: Where it goes.
        tell: Receives one message per domain.

    Returns:
        Domain by domain, in the order of the corpus; train, valid, test of each. And what was left
        out of all parts, including those that were gathered earlier.

    Raises:
        DocumentError: A domain with fewer than 3 documents, or no domain at all.
    """
    seen: set[bytes] = set()
    gathered: list[SplitText] = []
    total = LeftOut()
    parts = corpus.parts()  # complains about a wrong input before anything is written
    total.files.add(corpus.left_out)
    is_kept = True
    for part in parts:
        state = sources_state(part.sources)
        finished = _finished(part, corpus, folder=folder, state=state) if is_kept else None
        if finished is None:
            is_kept = False
            texts, left_out = _gather_part(
                part, corpus, folder=folder, state=state, seen=seen, tell=tell
            )
        else:
            texts, left_out = finished
            seen.update(_digests_of(texts))
            lost = f"; when it was gathered: {_skipped(left_out)}" if left_out.records else ""
            tell(f"kept the text of {part.name}{lost}")
        total.add(left_out)
        _check_no_collision(gathered, texts)
        gathered += texts
    _remove_left_overs(folder, gathered)
    if not gathered:
        raise DocumentError("no domain has enough text; give more, or lower --min-domain-kb")
    return gathered, total


def sources_state(sources: tuple[Path, ...]) -> str:
    """Digests name, size and modification time of every file, which is quick for any size."""
    digest = hashlib.sha256()
    for source in sources:
        for path in files_below(source) if source.is_dir() else [source]:
            status = path.stat()
            digest.update(os.fsencode(path.resolve()))  # names need not be UTF-8
            digest.update(f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _remove_left_overs(folder: Path, gathered: list[SplitText]) -> None:
    """Removes text of earlier settings and of killed runs: the tokenizer reads the whole folder."""
    current = {text.path for text in gathered}
    for split in SPLITS:
        for path in (folder / split).glob("*"):
            if path not in current:
                path.unlink()


def _record_path(folder: Path, part: Part) -> Path:
    return folder / f"{part.name}.part.json"


def _finished(
    part: Part, corpus: Corpus, *, folder: Path, state: str
) -> tuple[list[SplitText], LeftOut] | None:
    try:
        record = json.loads(_record_path(folder, part).read_text())
        if record["settings"] != corpus.settings() or record["sources"] != state:
            return None
        left_out = _left_out_of(record["left_out"])
        if left_out.records and corpus.options.on_error == "fail":
            return None  # the user has come to ask for each of them
        texts = [
            SplitText(
                domain=entry["domain"],
                split=entry["split"],
                path=folder / entry["file"],
                documents=entry["documents"],
                text_bytes=entry["text_bytes"],
                sha256=entry["sha256"],
            )
            for entry in record["texts"]
        ]
        sizes = [entry["file_bytes"] for entry in record["texts"]]
        are_whole = [text.path.stat().st_size for text in texts] == sizes
    except (OSError, ValueError, KeyError, TypeError):  # missing or torn: gather it again
        return None
    return (texts, left_out) if are_whole else None


def _digests_of(texts: list[SplitText]) -> set[bytes]:
    digests: set[bytes] = set()
    for text in texts:
        with text.path.open("rb") as lines:
            digests.update(digest_of(json.loads(line)["text"]) for line in lines)
    return digests


def _gather_part(
    part: Part,
    corpus: Corpus,
    *,
    folder: Path,
    state: str,
    seen: set[bytes],
    tell: Callable[[str], None],
) -> tuple[list[SplitText], LeftOut]:
    folder.mkdir(parents=True, exist_ok=True)
    _record_path(folder, part).unlink(missing_ok=True)
    domains: dict[str, _Domain] = {}
    left_out = LeftOut()
    try:
        _spool_records(part, corpus, folder=folder, seen=seen, domains=domains, left_out=left_out)
        texts: list[SplitText] = []
        for name, domain in sorted(domains.items()):
            reason = _reason_to_leave_out(domain, corpus)
            if reason is not None:
                tell(f"left out {name}: {reason}")
                seen.difference_update(domain.digests)  # its text is still to be had elsewhere
                continue
            texts += _write_splits(name, domain, folder)
            tell(
                f"{name}: {counted(len(domain.digests), 'document')}, "
                f"{domain.text_bytes / 1e6:.2f} MB{domain.dropped()}"
            )
        if left_out.records:
            tell(f"{part.name}: {_skipped(left_out)}")
        if not domains:
            is_found = left_out.records or left_out.files.total
            why = "nothing of it can be used" if is_found else "no text was found"
            tell(f"left out {part.name}: {why}")
    finally:
        for domain in domains.values():
            domain.spool.close()
            Path(domain.spool.name).unlink(missing_ok=True)
    _write_record(part, corpus, folder=folder, state=state, texts=texts, left_out=left_out)
    return texts, left_out


def _skipped(left_out: LeftOut) -> str:
    return f"{counted(left_out.records, 'unusable record')} skipped"


def _left_out_of(record: dict[str, Any]) -> LeftOut:
    """Reads what `dataclasses.asdict` wrote; raises TypeError for an earlier version."""
    return LeftOut(**{**record, "files": LeftOutFiles(**record["files"])})


def _reason_to_leave_out(domain: _Domain, corpus: Corpus) -> str | None:
    num_dropped = domain.num_duplicates + domain.num_empty
    if not domain.digests and num_dropped:
        kinds = {"duplicates of text gathered before": domain.num_duplicates}
        kinds |= {"empty": domain.num_empty}
        what = " or ".join(kind for kind, count in kinds.items() if count)
        return f"all documents ({num_dropped}) are {what}"
    if domain.text_bytes < corpus.min_domain_bytes:
        return (
            f"{domain.text_bytes / 1e3:.3g} KB here, a domain needs "
            f"{corpus.min_domain_bytes / 1e3:.3g} KB (--min-domain-kb){domain.dropped()}"
        )
    return None


def _spool_records(
    part: Part,
    corpus: Corpus,
    *,
    folder: Path,
    seen: set[bytes],
    domains: dict[str, _Domain],
    left_out: LeftOut,
) -> None:
    limit_bytes = corpus.max_domain_bytes
    refused_in_a_row = 0
    with TextProgress(f"gathering {part.name}", total_bytes=limit_bytes or 0) as progress:
        for record in part.records(left_out):
            domain = domains.get(record.domain)
            if domain is None:
                spool = _open_spool(folder / f".{len(domains)}.spool", part, len(domains))
                domain = domains[record.domain] = _Domain(spool)
            is_capped = record.split in (None, "train")  # a given valid split is taken whole
            if limit_bytes is not None and is_capped and domain.text_bytes >= limit_bytes:
                refused_in_a_row += 1
                if part.is_one_domain or refused_in_a_row >= PATIENCE_DOCUMENTS:
                    return
                continue
            size_bytes = _spool(record, domain, seen)
            refused_in_a_row = 0
            progress.update(
                1, text_bytes=size_bytes, bytes_read=min(domain.text_bytes, limit_bytes or 0)
            )


def _open_spool(path: Path, part: Part, num_domains: int) -> BinaryIO:
    try:
        return path.open("w+b")
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        raise DocumentError(
            f"{part.name}: more than {num_domains} domains need more open files than are allowed; "
            "correct --domain-key, or raise the limit (ulimit -n)"
        ) from error


def _spool(record: TextRecord, domain: _Domain, seen: set[bytes]) -> int:
    """Appends a document to its domain unless it is empty or known; returns its bytes."""
    if not record.text.strip():
        domain.num_empty += 1
        return 0
    digest = digest_of(record.text)
    if digest in seen:
        domain.num_duplicates += 1
        return 0
    seen.add(digest)
    size_bytes = len(record.text.encode())
    domain.spool.write(json.dumps({"text": record.text}, ensure_ascii=False).encode() + b"\n")
    domain.digests.append(digest)
    domain.sizes_bytes.append(size_bytes)
    domain.given_splits.append(record.split)
    domain.text_bytes += size_bytes
    return size_bytes


def _write_splits(name: str, domain: _Domain, folder: Path) -> list[SplitText]:
    given = [split for split in domain.given_splits if split is not None]
    if not given and len(domain.digests) < FEWEST_DOCUMENTS:
        raise DocumentError(
            f"{name}: {counted(len(domain.digests), 'document')} cannot be split into train, valid "
            f"and test; give at least {FEWEST_DOCUMENTS} (files of one domain go into one "
            "subfolder), or leave the domain out with --min-domain-kb"
        )
    splits = given or assign_splits(domain.digests, domain.sizes_bytes)
    texts = []
    for split in SPLITS:
        places = [place for place, assigned in enumerate(splits) if assigned == split]
        if not places:
            continue
        path = folder / split / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        domain.spool.seek(0)
        digest = hashlib.sha256()
        with atomic_writer(path) as output:
            for line, assigned in zip(domain.spool, splits, strict=True):
                if assigned == split:
                    output.write(line)
                    digest.update(line)
        size_bytes = sum(domain.sizes_bytes[place] for place in places)
        texts.append(
            SplitText(name, split, path, len(places), size_bytes, sha256=digest.hexdigest())
        )
    return texts


def _write_record(
    part: Part,
    corpus: Corpus,
    *,
    folder: Path,
    state: str,
    texts: list[SplitText],
    left_out: LeftOut,
) -> None:
    entries: list[dict[str, Any]] = [
        {
            "domain": text.domain,
            "split": text.split,
            "file": str(text.path.relative_to(folder)),
            "file_bytes": text.path.stat().st_size,
            "documents": text.documents,
            "text_bytes": text.text_bytes,
            "sha256": text.sha256,
        }
        for text in texts
    ]
    record = {
        "settings": corpus.settings(),
        "sources": state,
        "left_out": dataclasses.asdict(left_out),
        "texts": entries,
    }
    with atomic_writer(_record_path(folder, part)) as output:
        output.write((json.dumps(record, indent=1) + "\n").encode())


def _check_no_collision(gathered: list[SplitText], texts: list[SplitText]) -> None:
    for name in {text.domain for text in gathered} & {text.domain for text in texts}:
        raise DocumentError(f"two sources are both the domain {name!r}; rename one of them")
