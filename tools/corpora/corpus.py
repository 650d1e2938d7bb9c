"""What `prepare_data.py` calls a corpus: named parts, each a stream of texts with domains."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from megatron.data.splits import SplitName
from megatron.tokenizer.errors import DocumentError
from megatron.tokenizer.left_out import LeftOutFiles
from megatron.tokenizer.records import DEFAULT_LIMIT_BYTES

LONGEST_DOMAIN_NAME = 200
"""In characters; a file name has at most 255, and the names of a domain's files are longer."""

LONGEST_PIECE_CHARACTERS = 32_000


@dataclass(frozen=True)
class TextRecord:
    """One document and its domain; `split` is None if the hash of the text decides."""

    domain: str
    text: str
    split: SplitName | None = None


@dataclass
class LeftOut:
    """How much of a part could not be used; counted while the part is read."""

    records: int = 0
    files: LeftOutFiles = field(default_factory=LeftOutFiles)

    def add(self, other: "LeftOut") -> None:
        """Adds what was left out of another part."""
        self.records += other.records
        self.files.add(other.files)


@dataclass(frozen=True)
class Part:
    """A piece of a corpus that is gathered as a whole: kept if finished, else gathered again."""

    name: str
    records: Callable[[LeftOut], Iterator[TextRecord]]
    """Reads the records, and counts those that it leaves out."""
    is_one_domain: bool = True
    """Whether the part may stop as soon as its domain is full."""
    sources: tuple[Path, ...] = ()
    """Files and folders of the records: if they change, the part is gathered again."""


@dataclass(frozen=True)
class CorpusOptions:
    """Options of the command line about the text; None keeps the default of the corpus."""

    input_path: str | None = None
    text_key: str | None = None
    domain_key: str | None = None
    on_error: str = "fail"
    max_record_bytes: int = DEFAULT_LIMIT_BYTES
    max_domain_bytes: int | None = None
    min_domain_bytes: int | None = None
    report: Callable[[str], None] | None = None


class Corpus(ABC):
    """A source of text in domains; subclasses are entries of the registry."""

    description: ClassVar[str]
    licence: ClassVar[str]
    urls: ClassVar[tuple[str, ...]] = ()
    default_max_domain_bytes: ClassVar[int | None] = None
    default_min_domain_bytes: ClassVar[int] = 1

    def __init__(self, options: CorpusOptions):
        self.options = options
        self.left_out = LeftOutFiles()
        """Files that belong to no part; filled by `parts`."""
        self.max_domain_bytes = options.max_domain_bytes or self.default_max_domain_bytes
        self.min_domain_bytes = (
            self.default_min_domain_bytes
            if options.min_domain_bytes is None
            else options.min_domain_bytes
        )

    @abstractmethod
    def parts(self) -> list[Part]:
        """Lists the parts in a fixed order; nothing is read yet."""

    def settings(self) -> dict[str, object]:
        """What the gathered text depends on; after a change it is gathered again."""
        source = self.options.input_path
        return {
            "input": None if source is None else str(Path(source).resolve()),
            "text_key": self.options.text_key,
            "domain_key": self.options.domain_key,
            "max_record_bytes": self.options.max_record_bytes,
            "max_domain_bytes": self.max_domain_bytes,
            "min_domain_bytes": self.min_domain_bytes,
        }


def domain_name(raw: str) -> str:
    """Turns any name into one that can be a folder and a column of a log.

    Raises:
        DocumentError: Nothing usable is left, or too much.
    """
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", raw.strip()).strip("._")
    if not name:
        raise DocumentError(f"{_short(raw)} cannot be a domain name; use letters and digits")
    if len(name) > LONGEST_DOMAIN_NAME:
        raise DocumentError(
            f"the domain {_short(raw)} has a name of {len(name)} characters, at most "
            f"{LONGEST_DOMAIN_NAME} are allowed; shorten it"
        )
    return name


def _short(raw: str, longest: int = 60) -> str:
    return repr(raw if len(raw) <= longest else f"{raw[:longest]}...")


class DomainNames:
    """Makes domain names from the names in records; two domains never get the same name."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._first: dict[str, str] = {}

    def name_of(self, raw: str, *, where: str) -> str:
        """Returns `domain_name`; white space around a name makes no difference.

        Raises:
            DocumentError: Another domain already has this name (C and C++ must not become one), or
                nothing usable is left.
        """
        raw = raw.strip()
        if raw not in self._names:
            try:
                name = domain_name(raw)
            except DocumentError as error:
                raise DocumentError(f"{where}: {error}") from error
            first = self._first.setdefault(name, raw)
            if first != raw:
                raise DocumentError(
                    f"{where}: the domains {_short(first)} and {_short(raw)} would both be named "
                    f"{_short(name)}; rename one of them in the text"
                )
            self._names[raw] = name
        return self._names[raw]


def pieces(text: str, longest: int = LONGEST_PIECE_CHARACTERS) -> Iterator[str]:
    """Cuts a long text at blank lines, or else at line ends, into pieces of at most `longest`.

    A text that fits comes back as it is; no character is lost.
    """
    start = 0
    while len(text) - start > longest:
        window = text[start : start + longest]
        blank = max(_end_of_last(mark, window) for mark in ("\n\n", "\n\r\n"))
        cut = blank or _end_of_last("\n", window) or longest
        yield text[start : start + cut]
        start += cut
    if start < len(text):
        yield text[start:]


def _end_of_last(mark: str, window: str) -> int:
    """Where the last mark in the second half of a window ends; 0 if there is none."""
    place = window.rfind(mark, len(window) // 2)
    return place + len(mark) if place >= 0 else 0
