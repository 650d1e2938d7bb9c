"""The user's own text: a folder with one domain per subfolder or file, or records with a domain."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from megatron.data.splits import SPLITS, SplitName
from megatron.tokenizer.documents import Document, DocumentReader
from megatron.tokenizer.errors import DocumentError
from megatron.tokenizer.file_kinds import (
    is_hidden,
    is_one_document,
    is_readable,
    split_suffixes,
)
from megatron.tokenizer.left_out import HIDDEN, SINGLE
from tools.corpora.corpus import (
    Corpus,
    DomainNames,
    LeftOut,
    Part,
    TextRecord,
    domain_name,
    pieces,
)

SPLIT_OF_NAME: dict[str, SplitName] = {
    "train": "train",
    "valid": "valid",
    "validation": "valid",  # the name that the Hugging Face hub uses
    "val": "valid",
    "dev": "valid",
    "test": "test",
}
OTHER_NAMES = ("training", "eval", "evaluation", "holdout", "heldout", "held_out", "testing")
"""Beside `train` these are not domains either, but it is not clear which split they mean."""


class LocalCorpus(Corpus):
    """Text files of this machine.

    - with `--domain-key`: every record names its domain in that field (``meta.source`` descends);
    - a folder with `train` and `valid` (and perhaps `test`) inside: already split, each of them
      has a subfolder or a file per domain; `valid` may be called `validation`, `val` or `dev`;
    - a folder of files of prose or code alone: one domain;
    - any other folder: a subfolder or a file per domain;
    - a single file: one domain.

    Plain .txt files are cut at blank lines into pieces of at most 32000 characters. Each record,
    and each file of prose or code, is one document.
    """

    description: ClassVar[str] = "a folder with one subfolder or file per domain, or one jsonl file"
    licence: ClassVar[str] = "as the files say"

    def parts(self) -> list[Part]:
        """One part per domain, or a single one where the records name their domains."""
        root = self._root()
        if self.options.domain_key is not None:
            records = self._records_with_domain
            return [Part("records", records, is_one_domain=False, sources=(root,))]
        if root.is_file():
            return [self._part(domain_name(_stem(root)), {None: [root]})]
        folders = _split_folders(root)
        if folders:
            self._count_beside(root, list(folders.values()))
            name = _stem(root.resolve())
            found = {split: self._domains(path, name) for split, path in folders.items()}
            _check_same_domains(root, found)
            names = sorted(found["train"])
            return [self._part(name, {s: [found[s][name]] for s in found}) for name in names]
        paths = self._domains(root, _stem(root.resolve()))
        if not paths:
            raise DocumentError(f"{root}: the folder contains no readable file or subfolder")
        return [self._part(name, {None: [path]}) for name, path in sorted(paths.items())]

    def _root(self) -> Path:
        if self.options.input_path is None:
            raise DocumentError("local: no text is given; name a folder or a file with --input")
        root = Path(self.options.input_path)
        if not root.exists():
            raise DocumentError(f"{root}: no such file or folder; check --input")
        if not (root.is_file() or root.is_dir()):
            raise DocumentError(f"{root}: is neither a file nor a folder; check --input")
        return root

    def _count_beside(self, root: Path, folders: list[Path]) -> None:
        """Counts files that belong to no split in a folder that is already split."""
        reason = f"files and folders in none of {', '.join(folder.name for folder in folders)}"
        for path in _entries(root):
            if path not in folders:
                self.left_out.count(reason, str(path))
        self._count_unreadable(root)

    def _count_unreadable(self, folder: Path) -> None:
        for path in sorted(folder.iterdir()):
            if is_hidden(path.name):
                self.left_out.count(HIDDEN, str(path))
            elif not path.is_dir() and not is_readable(path.name):
                self.left_out.count_kind(str(path))

    def _domains(self, folder: Path, folder_name: str) -> dict[str, Path]:
        """The domains of a folder: name to its file or subfolder.

        A file that is a single document is not a domain: if there is nothing else, the folder is
        one domain; beside other domains the file is left out.
        """
        entries = _entries(folder)
        single = [path for path in entries if is_one_document(path.name) and not path.is_dir()]
        if entries and len(single) == len(entries):
            return {domain_name(folder_name): folder}
        self._count_unreadable(folder)
        for path in single:
            self.left_out.count(SINGLE, str(path))
        found: dict[str, Path] = {}
        for path in entries:
            if path in single:
                continue
            name = domain_name(_stem(path))
            if name in found:
                raise DocumentError(
                    f"{folder}: {found[name].name} and {path.name} are both the domain {name!r}; "
                    "rename one of them"
                )
            found[name] = path
        return found

    def _part(self, name: str, paths: dict[SplitName | None, list[Path]]) -> Part:
        def records(left_out: LeftOut) -> Iterator[TextRecord]:
            for split, files in paths.items():
                for path in files:
                    for text in self._texts(path, left_out):
                        yield TextRecord(name, text, split)

        sources = tuple(path for files in paths.values() for path in files)
        return Part(name, records, is_one_domain=None in paths, sources=sources)

    def _texts(self, path: Path, left_out: LeftOut) -> Iterator[str]:
        key = self.options.text_key or "text"
        for document in self._documents(path, [key], left_out):
            yield document.texts[0]

    def _records_with_domain(self, left_out: LeftOut) -> Iterator[TextRecord]:
        keys = [self.options.text_key or "text", self.options.domain_key or "domain"]
        names = DomainNames()
        for document in self._documents(self._root(), keys, left_out):
            text, domain = document.texts
            yield TextRecord(names.name_of(domain, where=document.location), text)

    def _documents(self, path: Path, keys: list[str], left_out: LeftOut) -> Iterator[Document]:
        reader = DocumentReader(
            [str(path)],
            keys=keys,
            on_error=self.options.on_error,
            report=self.options.report,
            max_record_bytes=self.options.max_record_bytes,
            cut_text=pieces,
        )
        try:
            yield from reader
        finally:  # also where the reading ends early because the domain is full
            left_out.records += reader.problems
            left_out.files.add(reader.left_out)


def _entries(folder: Path) -> list[Path]:
    """The subfolders and the readable files of a folder, hidden ones left out."""
    return [
        path
        for path in sorted(folder.iterdir())
        if not is_hidden(path.name) and (path.is_dir() or is_readable(path.name))
    ]


def _stem(path: Path) -> str:
    """The name of a folder, or that of a file without its suffixes."""
    if path.is_dir():
        return path.name
    content, compression = split_suffixes(path.name)
    suffix_length = 4 if path.name.lower().endswith(".tgz") else len(content + compression)
    return path.name[: len(path.name) - suffix_length]


def _split_folders(root: Path) -> dict[SplitName, Path]:
    """The folders of a corpus that is already split; empty if the folder contains domains.

    Raises:
        DocumentError: Beside `train` something looks like a split but cannot be used as one. It
            would become a domain, and the model would be trained on held-out text.
    """
    named = {path: _stem(path).lower() for path in _entries(root)}
    alike = [path for path, name in named.items() if name in SPLIT_OF_NAME or name in OTHER_NAMES]
    if "train" not in named.values() or len(alike) == 1:
        return {}
    found: dict[SplitName, Path] = {}
    for path in alike:
        split = SPLIT_OF_NAME.get(named[path])
        if split in found:
            raise DocumentError(
                f"{root}: {found[split].name} and {path.name} are both the split {split!r}; "
                "keep one of them"
            )
        if split is not None and path.is_dir():
            found[split] = path
    if len(found) < len(alike) or "valid" not in found:
        raise DocumentError(
            f"{root}: {', '.join(path.name for path in alike)} look like splits; a folder that is "
            "split has the folders train, valid (or validation, val, dev) and perhaps test, "
            "and no other split; arrange or rename them"
        )
    return {split: found[split] for split in SPLITS if split in found}


def _check_same_domains(root: Path, found: dict[SplitName, dict[str, Path]]) -> None:
    for split, domains in found.items():
        different = sorted(set(domains) ^ set(found["train"]))
        if different:
            raise DocumentError(
                f"{root}: {split} and train differ in the domains {', '.join(different)}; "
                "every split needs the same domains"
            )
