"""Reads documents from files: a JSON object per line, a row of a table, or a file of text or code.

A record that cannot be used is never dropped silently. By default it raises an error with its file
and line; with ``on_error="skip"`` it is reported and counted. Memory does not grow with the size of
a file, because the size of a record is limited.
"""

import json
import logging
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from megatron.tokenizer.errors import DocumentError
from megatron.tokenizer.file_kinds import LINE_SUFFIXES, PLAIN_SUFFIXES, printable, split_suffixes
from megatron.tokenizer.inputs import expand_inputs
from megatron.tokenizer.left_out import LeftOutFiles
from megatron.tokenizer.parquet import check_pyarrow, parquet_rows
from megatron.tokenizer.records import (
    DEFAULT_LIMIT_BYTES,
    Row,
    csv_rows,
    decode,
    limited_lines,
    listed,
    text_blocks,
    too_large,
    whole,
)
from megatron.tokenizer.streams import DAMAGE, Opening, TextStream, damaged, open_streams

logger = logging.getLogger(__name__)

MAX_REPORTS = 100
"""Number of problems that are reported one by one; further ones are only counted."""

_DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class Document:
    """The texts of one record, one per key, and its place (``file:line``)."""

    texts: tuple[str, ...]
    location: str


class DocumentReader:
    """Iterates over the documents of files, folders and archives, as a stream.

    Attributes:
        documents: Documents given out so far.
        problems: Records that were skipped so far (only with ``on_error="skip"``).
        left_out: Files of folders and archives that were not read so far, by kind and reason;
            its messages are for the end of the output.
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
        max_record_bytes: int = DEFAULT_LIMIT_BYTES,
        cut_text: Callable[[str], Iterator[str]] | None = None,
    ):
        """Lists the input files; nothing is opened before the iteration.

        Args:
            paths: Files or folders.
            keys: The fields of a record that hold text. A dotted key descends: ``meta.source``.
            on_error: ``"fail"`` raises at the first bad record, ``"skip"`` reports and counts it.
            report: Receives one line per skipped record; the logger by default.
            max_record_bytes: A larger record is a bad one.
            cut_text: Cuts a plain text (.txt), which may then have any size, into several
                documents; by default a file is one document.

        Raises:
            DocumentError: A path is missing or of an unknown kind.
        """
        if on_error not in ("fail", "skip"):
            raise DocumentError(f"--on-error must be fail or skip, got {on_error!r}")
        self._report = report or logger.warning
        self.left_out = LeftOutFiles()
        self.files = expand_inputs(list(paths), self.left_out, has_fields=len(keys) > 1)
        self.keys = tuple(keys)
        self.on_error = on_error
        self.max_record_bytes = max_record_bytes
        self.documents = 0
        self.problems = 0
        self.bytes_read = 0
        self.total_bytes = sum(path.stat().st_size for path in self.files)
        self._cut_text = cut_text
        for path in self.files:
            if split_suffixes(path.name)[0] == ".parquet":
                check_pyarrow(str(path))

    def __iter__(self) -> Iterator[Document]:
        opening = Opening(
            on_read=self._count_bytes,
            left_out=self.left_out,
            limit_bytes=self.max_record_bytes,
            has_fields=len(self.keys) > 1,
        )
        for path in self.files:
            for stream in open_streams(path, opening):
                for document in self._read(stream):
                    self.documents += 1
                    yield document

    def _read(self, stream: TextStream) -> Iterator[Document]:
        if stream.content in LINE_SUFFIXES:
            documents = self._lines(stream)
        elif stream.content in _DELIMITERS or stream.content == ".parquet":
            documents = self._rows(stream)
        else:
            documents = self._text(stream)
        while True:
            try:
                document = next(documents, None)
            except DAMAGE as error:
                raise damaged(stream.name, error) from error
            if document is None:
                return
            yield document

    def _lines(self, stream: TextStream) -> Iterator[Document]:
        lines = limited_lines(stream.stream, self.max_record_bytes)
        for number, line in enumerate(lines, start=1):
            if line is not None and not line.removeprefix(BOM_UTF8).strip():
                continue
            location = f"{stream.name}:{number}"
            try:
                if line is None:
                    raise too_large(self.max_record_bytes)
                texts = texts_of_record(line, self.keys)
            except ValueError as error:
                self._problem(location, str(error))
                continue
            yield Document(texts, location)

    def _rows(self, stream: TextStream) -> Iterator[Document]:
        limit_bytes = self.max_record_bytes
        rows: Iterator[Row]
        if stream.content == ".parquet":
            rows = parquet_rows(stream.stream, self.keys, name=stream.name, limit_bytes=limit_bytes)
        else:
            delimiter = _DELIMITERS[stream.content]
            rows = csv_rows(stream.stream, self.keys, delimiter=delimiter, limit_bytes=limit_bytes)
        for number, row in rows:
            location = f"{stream.name}:{number}"
            try:
                if isinstance(row, ValueError):
                    raise row
                texts = tuple(_text_of(row, key) for key in self.keys)
            except ValueError as error:
                self._problem(location, str(error))
                continue
            yield Document(texts, location)

    def _text(self, stream: TextStream) -> Iterator[Document]:
        if len(self.keys) > 1:
            raise DocumentError(
                f"{stream.name}: a file of text or code has no keys, but {len(self.keys)} were "
                f"asked for ({', '.join(self.keys)}); give .jsonl, .csv or .parquet, or one key"
            )
        cut = self._cut_text if stream.content in PLAIN_SUFFIXES else None
        offset = 0
        for block in text_blocks(stream.stream) if cut else self._whole(stream):
            try:
                text = decode(block, offset=offset)
            except ValueError as error:
                self._problem(stream.name, str(error))
            else:
                for piece in cut(text) if cut else (text,):
                    yield Document((piece,), stream.name)
            offset += len(block)

    def _whole(self, stream: TextStream) -> Iterator[bytes]:
        content = whole(stream.stream, self.max_record_bytes)
        if content is not None:
            yield content
        else:
            self._problem(stream.name, str(too_large(self.max_record_bytes)))

    def _problem(self, location: str, reason: str) -> None:
        message = f"{location}: {printable(reason)}"
        if self.on_error == "fail":
            raise DocumentError(f"{message}; fix the record or pass --on-error skip")
        self.problems += 1
        if self.problems <= MAX_REPORTS:
            self._report(f"skipped {message}")
        if self.problems == MAX_REPORTS:
            self._report("further skipped records are counted but not listed")

    def _count_bytes(self, count: int) -> None:
        self.bytes_read = min(self.bytes_read + count, self.total_bytes)


def texts_of_record(line: bytes, keys: Sequence[str]) -> tuple[str, ...]:
    """Parses one line and takes its text fields.

    Raises:
        ValueError: Not UTF-8, not a JSON object, a key is missing, or a value is not usable text.
    """
    if line.strip() in (b"{", b"["):
        raise ValueError("JSON over several lines, write one object per line")
    try:
        record = json.loads(decode(line))
    except json.JSONDecodeError as error:
        problem = error.msg.removesuffix(" at")  # some of json's messages wait for the place
        raise ValueError(f"malformed JSON, {problem} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("malformed JSON, nested too deeply") from error
    if not isinstance(record, dict):
        raise ValueError(f"not a JSON object but {_kind(record)}, write one object per line")
    return tuple(_text_of(record, key) for key in keys)


def lookup(record: Any, key: str) -> Any:
    """Returns ``record[key]``; a dotted key that does not exist itself descends into objects.

    Raises:
        ValueError: The key is missing; the message lists the keys that exist.
    """
    if isinstance(record, dict) and key in record:
        return record[key]
    head, dot, rest = key.partition(".")
    if dot and isinstance(record, dict) and head in record:
        return lookup(record[head], rest)
    present = listed([*record]) if isinstance(record, dict) else _kind(record)
    raise ValueError(f"no key {key!r} (there is: {present})")


def _text_of(record: dict[str, Any], key: str) -> str:
    value = lookup(record, key)
    if not isinstance(value, str):
        raise ValueError(f"the value of {key!r} is not text but {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON may carry half of a surrogate pair as \ud83d
        raise ValueError(
            f"the value of {key!r} contains half a character (a surrogate) at {error.start}"
        ) from error
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    names |= {int: "a number", float: "a number", type(None): "null"}
    return names.get(type(value), f"a {type(value).__name__}")
