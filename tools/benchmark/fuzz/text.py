"""Reads many damaged text files of every kind; only the errors meant for users may come out.

A case follows from the seed and its number alone. `fuzz` is the command.
"""

import bz2
import collections
import gzip
import io
import lzma
import random
import tarfile
import tempfile
import traceback
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import zstandard

from megatron.tokenizer.documents import DocumentReader
from megatron.tokenizer.errors import DocumentError
from tools.corpora.corpus import pieces

LIMIT_BYTES = 5000
"""Limit for one record; some cases exceed it."""

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": lambda content: gzip.compress(content, mtime=0),
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
    ".xz": lambda content: lzma.compress(content, preset=0),
}
LINES = (".jsonl", ".json", ".ndjson")
TABLES = (".csv", ".tsv")
TEXTS = (".txt", ".md", ".py")
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2")

RECORDS = (
    b'{"text": "one"}',
    b'{"text": "two", "source": "web"}',
    b'{"text": "\\ud83d"}',
    b'{"text": "\\ud83d\\ude00 \\u0000"}',
    b'{"text": null, "source": []}',
    b'{"text": {"text": "x"}}',
    b'{"text": "a", "text": "b"}',
    b"[1, 2]",
    b'"text"',
    b"NaN",
    b'{"text": 1e999}',
    b'{"text": %s}' % (b"9" * 5000),
    b"[" * 4000,
    b'{"a":' * 700,
    b'{"text": "%s"}' % (b"x" * 2 * LIMIT_BYTES),
    b'{"%s": 1}' % (b"key" * 1000),
    b'{"text": "\xff\xfe"}',
    b"\xef\xbb\xbf",
    b"\xff\xfe{\x00}\x00",
    b"\x00" * 50,
    b" \t\r",
    b"",
)
CELLS = (
    b"text",
    b"source",
    b"one",
    b"",
    b'"quoted"',
    b'"two\nlines"',
    b'"open',
    b'mid"dle',
    b'"a"b',
    b"\xff",
    b"\x00",
    b"\r",
    "\u4e2d\u2028".encode(),
    b"x" * 2 * LIMIT_BYTES,
)
NAMES = (
    "a.txt",
    "b.jsonl",
    "c/d.csv",
    "e.md.gz",
    "f.zip",
    "g.parquet",
    "../h.txt",
    "/i.txt",
    "\0j.txt",
    "k.txt\0.png",
    "",
    "/",
    ".",
    "..",
    "__MACOSX/._a.txt",
    ".hidden/l.txt",
    "m\n\x1b[31m.txt",
    "\u4e2d.txt",
    "n" * 300 + ".txt",
    "\\o\\p.txt",
)

TAR_TYPES = (b"1", b"2", b"3", b"5", b"6", b"7", b"K", b"L", b"S", b"g", b"x", b"X", b"?")


@dataclass(frozen=True)
class Case:
    """A file to read, and how."""

    number: int
    name: str
    content: bytes
    keys: tuple[str, ...]
    on_error: str
    is_cut: bool


def cases(seed: int, count: int) -> Iterator[Case]:
    """Makes the first cases of a seed."""
    for number in range(count):
        yield make_case(seed, number)


def make_case(seed: int, number: int) -> Case:
    """Makes a case; it follows from the arguments alone."""
    draw = random.Random(f"{seed}/{number}")
    suffix = draw.choice((*LINES, *TABLES, *TEXTS, *ARCHIVES, ".parquet", ".parquet", ".zip"))
    if suffix == ".parquet":
        content = _parquet(draw.randrange(6))
    elif suffix in ARCHIVES:
        content = _archive(draw, suffix)
    else:
        compression = draw.choice([*COMPRESS])
        content = COMPRESS[compression](_mutated(draw, _plain(draw, suffix), draw.choice((0, 2))))
        suffix += compression
    return Case(
        number,
        f"case{suffix}",
        _mutated(draw, content, draw.choice((0, 0, 0, 1, 3))),
        keys=draw.choice((("text",), ("text",), ("text", "source"), ("a.b",))),
        on_error=draw.choice(("fail", "skip")),
        is_cut=draw.random() < 0.5,
    )


def run_case(case: Case, folder: Path) -> str:
    """Reads a case from a file in a folder; returns ``read`` or ``refused``.

    Raises:
        AssertionError: What is read or reported is not as promised.
        Exception: Anything that is not meant for a user.
    """
    path = folder / case.name
    path.write_bytes(case.content)
    told: list[str] = []
    try:
        reader = DocumentReader(
            [str(path)],
            keys=case.keys,
            on_error=case.on_error,
            report=told.append,
            max_record_bytes=LIMIT_BYTES,
            cut_text=pieces if case.is_cut else None,
        )
        for document in reader:
            assert len(document.texts) == len(case.keys)
            assert sum(len(text.encode()) for text in document.texts) <= 2 * 1024 * 1024
        outcome = "read"
        assert len(told) == min(reader.problems, 100) + (reader.problems >= 100)
        told += reader.left_out.lines()
    except DocumentError as error:
        outcome = "refused"
        told.append(str(error))
    finally:
        path.unlink()
    assert outcome == "read" or str(path) in told[-1], f"no file named: {told[-1]}"
    for line in told:
        assert line.isprintable(), f"not one printable line: {line!r}"
        assert len(line) < 2000, f"too long: {line[:200]}"
    return outcome


def run_cases(seed: int, count: int) -> tuple[dict[str, int], list[str]]:
    """Runs cases.

    Args:
        seed: Seed of all cases.
        count: How many.

    Returns:
        How many cases had which outcome, and a report of each that failed.
    """
    outcomes: collections.Counter[str] = collections.Counter()
    failures = []
    with tempfile.TemporaryDirectory(prefix="fuzz-text-") as folder:
        for case in cases(seed, count):
            try:
                outcome = run_case(case, Path(folder))
            except Exception:
                outcome = "unexpected"
                failures.append(f"case {case.number} of seed {seed}: {traceback.format_exc()}")
            kind = case.name.removeprefix("case")
            outcomes[f"{kind} {outcome}"] += 1
    return dict(sorted(outcomes.items())), failures


def _plain(draw: random.Random, suffix: str) -> bytes:
    if suffix in TABLES:
        delimiter = b"\t" if suffix == ".tsv" else b","
        header = draw.choice((b"text", delimiter.join((b"text", b"source")), b""))
        width = header.count(delimiter) + 1
        rows = [
            delimiter.join(draw.choices(CELLS, k=draw.choice((width, width, width, 3))))
            for _ in range(draw.randrange(6))
        ]
        return b"\n".join([header, *rows])
    records = draw.choices(RECORDS, k=draw.randrange(6))
    return draw.choice((b"\n", b"\n", b"\r\n", b"\r")).join(records)


def _archive(draw: random.Random, suffix: str) -> bytes:
    members = []
    for _ in range(draw.randrange(5)):
        name = draw.choice(NAMES)
        content = _plain(draw, ".csv" if name.endswith(".csv") else ".jsonl")
        members.append((name, gzip.compress(content, mtime=0) if "gz" in name else content))
    target = io.BytesIO()
    if suffix == ".zip":
        methods = (
            zipfile.ZIP_STORED,
            zipfile.ZIP_DEFLATED,
            zipfile.ZIP_DEFLATED,
            zipfile.ZIP_BZIP2,
        )
        with zipfile.ZipFile(target, "w") as archive:
            for name, content in members:
                entry = zipfile.ZipInfo("x")
                entry.filename, entry.compress_type = name, draw.choice(methods)
                if draw.random() < 0.1:
                    entry.external_attr = 0o120777 << 16
                archive.NameToInfo.clear()  # else each doubled name is a warning
                archive.writestr(entry, content)
        return target.getvalue()
    with tarfile.open(fileobj=target, mode="w", format=draw.randrange(3)) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name[:90].replace("\0", ""))
            member.size = len(content)
            member.type = draw.choice((tarfile.REGTYPE, tarfile.REGTYPE, *TAR_TYPES))
            tar.addfile(member, io.BytesIO(content))
    compression = {".tgz": ".gz"}.get(suffix, suffix.removeprefix(".tar"))
    return COMPRESS[compression](target.getvalue())


@cache
def _parquet(number: int) -> bytes:
    import pyarrow
    from pyarrow import parquet

    texts = [f"text {place % 5}" for place in range(40)]
    columns = [
        {"text": texts, "source": texts[::-1]},
        {"text": [*texts, None], "a": [{"b": "x"}] * 41},
        {"text": [b"\xff", b"x"], "source": ["", "y"]},
        {"text": ["x" * 2 * LIMIT_BYTES, "y"]},
        {"text": [["list"], []], "a": [1, 2]},
        {"other": texts},
    ][number]
    target = io.BytesIO()
    parquet.write_table(
        pyarrow.table(columns),
        target,
        compression=("snappy", "zstd", "gzip", "none", "brotli", "lz4")[number],
        row_group_size=15,
        data_page_version=("1.0", "2.0")[number % 2],
    )
    return target.getvalue()


def _mutated(draw: random.Random, content: bytes, times: int) -> bytes:
    changed = bytearray(content)
    for _ in range(times):
        place = draw.randrange(len(changed) + 1)
        length = draw.choice((1, 1, 2, 4, 16, 200))
        kind = draw.randrange(6)
        if kind == 0 and place < len(changed):
            changed[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            changed[place : place + length] = draw.randbytes(length)
        elif kind == 2:
            changed[place : place + length] = draw.choice((b"\xff", b"\0")) * length
        elif kind == 3:
            del changed[place : place + length]
        elif kind == 4:
            changed[place:place] = changed[place : place + length]
        else:
            del changed[place:]
    return bytes(changed)
