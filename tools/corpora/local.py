"""The user's own text: a folder with one domain a subfolder or file, or records with a domain."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from megatron.tokenizer.documents import DocumentReader
from megatron.tokenizer.errors import DocumentError
from megatron.tokenizer.streams import (
    READABLE,
    TEXT_SUFFIXES,
    files_below,
    is_readable,
    split_suffixes,
)
from tools.corpora.corpus import SPLITS, Corpus, Part, Split, TextRecord, domain_name, pieces


class LocalCorpus(Corpus):
    """Text files of this machine.

    - with `--domain-key`: every record says its domain in that field (``meta.source`` descends);
    - a folder with `train` and `valid` (and perhaps `test`) inside: split already, each of them
      holds a subfolder or a file a domain;
    - any other folder: a subfolder or a file a domain;
    - a single file: one domain.

    Plain .txt files are cut at blank lines into pieces of at most 32000 characters; the records of
    .jsonl files stay as they are.
    """

    description: ClassVar[str] = "a folder with one subfolder or file a domain, or one jsonl file"
    licence: ClassVar[str] = "as the files say"

    def parts(self) -> list[Part]:
        """One part a domain, or a single one where the records name their domains."""
        root = self._root()
        self._tell_unreadable(root)
        if self.options.domain_key is not None:
            records = self._records_with_domain
            return [Part("records", records, is_one_domain=False, sources=(root,))]
        if root.is_file():
            return [self._part(_stem(root), {None: [root]})]
        if (root / "train").is_dir() and (root / "valid").is_dir():
            present = [split for split in SPLITS if (root / split).is_dir()]
            found = {split: _domain_paths(root / split) for split in present}
            _check_same_domains(root, found)
            names = sorted(found["train"])
            return [self._part(name, {s: [found[s][name]] for s in present}) for name in names]
        paths = _domain_paths(root)
        if not paths:
            raise DocumentError(f"{root}: the folder holds no readable file or subfolder")
        return [self._part(name, {None: [path]}) for name, path in sorted(paths.items())]

    def _root(self) -> Path:
        if self.options.input_path is None:
            raise DocumentError("local: which text? give a folder or a file with --input")
        root = Path(self.options.input_path)
        if not root.exists():
            raise DocumentError(f"{root}: no such file or folder; check --input")
        return root

    def _tell_unreadable(self, root: Path) -> None:
        """Says which files of a folder are left out because of their names."""
        if self.options.report is None or not root.is_dir():
            return
        files = (path for path in files_below(root) if not is_readable(path.name))
        names = [path.relative_to(root) for path in files]
        shown = [name for name in names if not any(part.startswith(".") for part in name.parts)]
        if shown:
            self.options.report(
                f"{root}: left out {len(shown)} files, {shown[0]} the first; "
                f"what is read: {READABLE}"
            )

    def _part(self, name: str, paths: dict[Split | None, list[Path]]) -> Part:
        def records() -> Iterator[TextRecord]:
            for split, files in paths.items():
                for path in files:
                    for text in self._texts(path):
                        yield TextRecord(name, text, split)

        sources = tuple(path for files in paths.values() for path in files)
        return Part(name, records, is_one_domain=None in paths, sources=sources)

    def _texts(self, path: Path) -> Iterator[str]:
        key = self.options.text_key or "text"
        for document in self._reader(path, [key]):
            (text,) = document.texts
            is_plain = split_suffixes(document.location)[0] in TEXT_SUFFIXES
            yield from pieces(text) if is_plain else (text,)

    def _records_with_domain(self) -> Iterator[TextRecord]:
        keys = [self.options.text_key or "text", self.options.domain_key or "domain"]
        for document in self._reader(self._root(), keys):
            text, domain = document.texts
            yield TextRecord(domain_name(domain), text)

    def _reader(self, path: Path, keys: list[str]) -> DocumentReader:
        return DocumentReader(
            [str(path)], keys=keys, on_error=self.options.on_error, report=self.options.report
        )


def _stem(path: Path) -> str:
    content, compression = split_suffixes(path.name)
    suffix_length = 4 if path.name.lower().endswith(".tgz") else len(content + compression)
    return domain_name(path.name[: len(path.name) - suffix_length])


def _domain_paths(folder: Path) -> dict[str, Path]:
    """The domains of a folder: name to its file or subfolder."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            name = domain_name(path.name)
        elif is_readable(path.name):
            name = _stem(path)
        else:
            continue
        if name in found:
            raise DocumentError(
                f"{folder}: {found[name].name} and {path.name} are both the domain {name!r}; "
                "rename one of them"
            )
        found[name] = path
    return found


def _check_same_domains(root: Path, found: dict[Split, dict[str, Path]]) -> None:
    for split, domains in found.items():
        different = sorted(set(domains) ^ set(found["train"]))
        if different:
            raise DocumentError(
                f"{root}: {split} and train differ in the domains {', '.join(different)}; "
                "every split needs the same domains"
            )
