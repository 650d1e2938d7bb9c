"""Reads documents from text files: one JSON object a line, or one plain text file.

A record that cannot be used is never dropped in silence: by default it ends the reading with its
file and line; with ``on_error="skip"`` it is reported and counted.
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from megatron.tokenizer.errors import DocumentError
from megatron.tokenizer.streams import DAMAGE, TextStream, damaged, expand_inputs, open_streams

logger = logging.getLogger(__name__)

MAX_REPORTS = 100
"""Problems told one by one; the rest is only counted, so that a log stays readable."""


@dataclass(frozen=True)
class Document:
    """The texts of one record, one a key, and where the record stands (``file:line``)."""

    texts: tuple[str, ...]
    location: str


class DocumentReader:
    """Iterates over the documents of files, folders and archives, as a stream.

    Attributes:
        documents: Documents given out so far.
        problems: Records that were skipped so far (only with ``on_error="skip"``).
        ignored: Files in archives that were left out so far, being of another kind, or links.
        bytes_read: Bytes read from disk so far (compressed size), at most `total_bytes`.
        total_bytes: Size of all input files on disk.
    """

    def __init__(
        self,
        paths: Sequence[str],
        *,
        keys: Sequence[str] = ("text",),
        on_error: str = "fail",
        report: Callable[[str], None] | None = None,
    ):
        """Lists the input files; nothing is opened before the iteration.

        Args:
            paths: Files or folders.
            keys: The fields of a record that hold text. A dotted key descends: ``meta.source``.
            on_error: ``"fail"`` raises at the first bad record, ``"skip"`` reports and counts it.
            report: Receives one line a skipped record; the logger by default.

        Raises:
            DocumentError: A path is missing or of an unknown kind.
        """
        if on_error not in ("fail", "skip"):
            raise DocumentError(f"--on-error must be fail or skip, got {on_error!r}")
        self._report = report or logger.warning
        self.files = expand_inputs(list(paths), report=self._report)
        self.keys = tuple(keys)
        self.on_error = on_error
        self.documents = 0
        self.problems = 0
        self.ignored = 0
        self.bytes_read = 0
        self.total_bytes = sum(path.stat().st_size for path in self.files)

    def __iter__(self) -> Iterator[Document]:
        for path in self.files:
            streams = open_streams(path, on_read=self._count_bytes, on_ignored=self._tell_ignored)
            for stream in streams:
                for document in self._read(stream):
                    self.documents += 1
                    yield document

    def _read(self, stream: TextStream) -> Iterator[Document]:
        records = self._lines(stream) if stream.is_lines else self._whole(stream)
        while True:
            try:
                document = next(records, None)
            except DAMAGE as error:
                raise damaged(stream.name, error) from error
            if document is None:
                return
            yield document

    def _lines(self, stream: TextStream) -> Iterator[Document]:
        for number, line in enumerate(stream.stream, start=1):
            if line.isspace():
                continue
            location = f"{stream.name}:{number}"
            try:
                texts = texts_of_record(line, self.keys)
            except ValueError as error:
                self._problem(location, str(error))
                continue
            yield Document(texts, location)

    def _whole(self, stream: TextStream) -> Iterator[Document]:
        if len(self.keys) > 1:
            raise DocumentError(
                f"{stream.name}: a plain text file has no keys, but {len(self.keys)} were asked for"
                f" ({', '.join(self.keys)}); give .jsonl or one key"
            )
        content = stream.stream.read()
        try:
            text = decode(content)
        except ValueError as error:
            self._problem(stream.name, str(error))
            return
        yield Document((text,), stream.name)

    def _problem(self, location: str, reason: str) -> None:
        message = f"{location}: {reason}"
        if self.on_error == "fail":
            raise DocumentError(f"{message}; mend the record or pass --on-error skip")
        self.problems += 1
        if self.problems <= MAX_REPORTS:
            self._report(f"skipped {message}")
        if self.problems == MAX_REPORTS:
            self._report("further skipped records are counted but not listed")

    def _count_bytes(self, count: int) -> None:
        self.bytes_read = min(self.bytes_read + count, self.total_bytes)

    def _tell_ignored(self, name: str, reason: str) -> None:
        self.ignored += 1
        if self.ignored <= MAX_REPORTS:
            self._report(f"{name}: left out, {reason}")
        if self.ignored == MAX_REPORTS:
            self._report("further files in archives that are left out are counted but not listed")


def decode(content: bytes) -> str:
    """Decodes UTF-8, without a byte order mark; ValueError names the first bad byte."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"invalid UTF-8 at byte {error.start}, 0x{content[error.start]:02x}"
        ) from error


def texts_of_record(line: bytes, keys: Sequence[str]) -> tuple[str, ...]:
    """Parses one line and takes its text fields.

    Raises:
        ValueError: Not UTF-8, not a JSON object, a key is missing, or a value is not usable text.
    """
    try:
        record = json.loads(decode(line))
    except json.JSONDecodeError as error:
        problem = error.msg.removesuffix(" at")  # some of json's messages wait for the place
        raise ValueError(f"malformed JSON, {problem} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("malformed JSON, nested too deeply") from error
    if not isinstance(record, dict):
        raise ValueError(f"not a JSON object but {_kind(record)}")
    return tuple(_text_of(record, key) for key in keys)


def lookup(record: Any, key: str) -> Any:
    """Returns ``record[key]``; a dotted key that is not there itself descends into objects.

    Raises:
        ValueError: The key is missing; the message lists the keys that exist.
    """
    if isinstance(record, dict) and key in record:
        return record[key]
    head, dot, rest = key.partition(".")
    if dot and isinstance(record, dict) and head in record:
        return lookup(record[head], rest)
    present = ", ".join(map(repr, record)) if isinstance(record, dict) else _kind(record)
    raise ValueError(f"no key {key!r} (there is: {present or 'nothing'})")


def _text_of(record: dict[str, Any], key: str) -> str:
    value = lookup(record, key)
    if not isinstance(value, str):
        raise ValueError(f"the value of {key!r} is not text but {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON may carry half of a surrogate pair as \ud83d
        raise ValueError(f"the value of {key!r} holds a lone surrogate at {error.start}") from error
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "a number")
