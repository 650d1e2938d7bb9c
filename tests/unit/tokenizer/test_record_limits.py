"""No input holds more memory than its largest record: in each format, whatever comes out of it."""

import bz2
import gzip
import lzma
import os
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import pytest
import zstandard

from megatron.tokenizer.command_line import add_max_record_mb
from megatron.tokenizer.documents import DocumentReader
from megatron.tokenizer.errors import DocumentError
from megatron.tokenizer.records import limited_lines, text_blocks
from tools.corpora.corpus import pieces

ROOT = Path(__file__).resolve().parents[3]
MEGABYTE = 1_000_000
TEXT_MB = 60
COMPRESS = {
    ".gz": lambda content: gzip.compress(content, 1),
    ".zst": zstandard.compress,
    ".bz2": lambda content: bz2.compress(content, 1),
    ".xz": lambda content: lzma.compress(content, preset=0),
}
READ = """
import resource, sys
from megatron.tokenizer.documents import DocumentReader

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000

path, on_error, limit = sys.argv[1:]
if path.endswith(".parquet"):
    import pyarrow.parquet
before = peak()
told = []
reader = DocumentReader([path], on_error=on_error, report=told.append, max_record_bytes=int(limit))
try:
    documents = sum(1 for document in reader)
except ValueError as error:
    documents, told = -1, [str(error)]
print(documents, round(peak() - before), *told, sep="\\n")
"""


def read_apart(path, *, on_error="fail", limit_bytes=4 * MEGABYTE):
    """Reads in a process of its own; documents, megabytes that it took, what was told."""
    command = [sys.executable, "-c", READ, str(path), on_error, str(limit_bytes)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    documents, megabytes, *told = result.stdout.splitlines()
    return int(documents), int(megabytes), told


def write(path, content):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.jsonl", content)
    else:
        path.write_bytes(COMPRESS[path.suffix](content))
    return path


@pytest.mark.parametrize("suffix", [*COMPRESS, ".zip"])
def test_a_small_file_of_much_text_takes_no_memory(tmp_path, suffix):
    line = b'{"text": "%s"}\n' % (b"a" * 99_985)
    path = write(tmp_path / f"a.jsonl{suffix}", line * (10 * TEXT_MB))
    documents, megabytes, _ = read_apart(path)
    assert documents == 10 * TEXT_MB
    assert megabytes < 20


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.csv.zst", "a.md.zst"])
def test_a_record_above_the_limit_is_skipped_without_holding_it(tmp_path, name):
    small = {"a.jsonl.zst": b'{"text": "x"}\n', "a.csv.zst": b"text\n"}.get(name, b"")
    path = write(tmp_path / name, small + b"a" * (TEXT_MB * MEGABYTE) + b"\n" + small)
    documents, megabytes, told = read_apart(path, on_error="skip")
    assert documents == {"a.jsonl.zst": 2, "a.csv.zst": 1, "a.md.zst": 0}[name]
    assert megabytes < 35
    assert len(told) == 1
    assert "a record of more than 4 MB, raise --max-record-mb" in told[0]


def test_a_plain_text_of_any_size_is_cut_without_holding_it(tmp_path):
    path = write(tmp_path / "a.txt.gz", b"a" * (TEXT_MB * MEGABYTE))
    assert read_apart(path)[0] == -1  # as one document it is too large
    reader = DocumentReader([str(path)], cut_text=pieces, max_record_bytes=1)
    lengths = [len(document.texts[0]) for document in reader]
    assert sum(lengths) == TEXT_MB * MEGABYTE
    assert max(lengths) <= 32_000


@pytest.mark.parametrize("large", [False, True])
def test_a_row_group_of_parquet_takes_no_more_than_its_pages(tmp_path, large):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    rows = ["a" * (TEXT_MB * MEGABYTE)] if large else ["a" * MEGABYTE] * TEXT_MB
    parquet.write_table(arrow.table({"text": rows}), path)
    assert path.stat().st_size < 6 * MEGABYTE
    documents, megabytes, told = read_apart(path)
    assert documents == (-1 if large else TEXT_MB)
    assert megabytes < 35
    if large:
        assert "a page of 60 MB" in told[0]
        assert "at most 16 MB are allowed (4 times --max-record-mb)" in told[0]


def with_large_dictionary(content):
    """An .xz file whose block asks for 1 GiB; a compressor that does so takes seconds."""
    header = bytearray(content[12 : 12 + 4 * (content[12] + 1) - 4])
    assert header[2:4] == b"\x21\x01"  # LZMA2, with one byte of properties
    header[4] = 36  # 2 << (36 / 2 + 11)
    end = 12 + len(header) + 4
    return content[:12] + header + zlib.crc32(header).to_bytes(4, "little") + content[end:]


@pytest.mark.parametrize("suffix", [".zst", ".xz"])
def test_a_file_that_needs_a_huge_window_is_refused_with_the_option(tmp_path, suffix):
    content = os.urandom(1000)
    if suffix == ".zst":
        parameters = zstandard.ZstdCompressionParameters(window_log=30, hash_log=10, chain_log=10)
        compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        compressed = compressor.compress(content) + compressor.flush()
    else:
        compressed = with_large_dictionary(lzma.compress(content))
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(compressed)
    with pytest.raises(DocumentError, match=r"a\.txt\.(zst|xz): decompression .*--max-record-mb"):
        list(DocumentReader([str(path)], on_error="skip"))
    reader = DocumentReader([str(path)], on_error="skip", max_record_bytes=1_200_000_000)
    assert (list(reader), reader.problems) == ([], 1)  # read, and found not to be UTF-8


def test_a_zip_member_that_would_be_decompressed_as_a_whole_is_refused(tmp_path):
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
            archive.writestr("a.txt", "x")
        with pytest.raises(DocumentError, match=rf"a\.zip!a\.txt: .* method {method}"):
            list(DocumentReader([str(tmp_path / "a.zip")]))


def test_a_tar_header_that_announces_a_huge_name_is_damage(tmp_path):
    import tarfile

    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
    path = tmp_path / "a.tar"
    path.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(DocumentError, match="an extended header of 8589934592 bytes"):
        list(DocumentReader([str(path)]))


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"123\n12\n", [b"123\n", b"12\n"]),
        (b"1234\n12", [None, b"12"]),
        (b"1234", [None]),
        (b"123", [b"123"]),
        (b"123\r\n12\r\n", [b"123\r\n", b"12\r\n"]),
        (b"1234\r\n123\r", [None, b"123\r"]),
        (b"12345\r\n\n", [None, b"\n"]),
        (b"\n\n", [b"\n", b"\n"]),
    ],
)
def test_a_line_counts_without_its_end(tmp_path, content, lines):
    (tmp_path / "a").write_bytes(content)
    with open(tmp_path / "a", "rb") as stream:
        assert list(limited_lines(stream, 3)) == lines


@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
@pytest.mark.parametrize(
    ("row", "is_read"),
    [
        ("123,1", True),
        ("1234,1", False),
        ('"12",', True),
        ('"\n\n\n"', True),
        ('"\n\n\n\n"', False),
    ],
)
def test_a_row_of_a_table_counts_without_its_end(tmp_path, row, is_read, end):
    header = "t,x\n" if "," in row else "t\n"
    (tmp_path / "a.csv").write_text(f"{header}{row}{end}", newline="")
    told = []
    settings = {"keys": ["t"], "on_error": "skip", "report": told.append}
    reader = DocumentReader([str(tmp_path / "a.csv")], max_record_bytes=5, **settings)
    assert [len(list(reader)), len(told)] == ([1, 0] if is_read else [0, 1])


@pytest.mark.parametrize("unit", ["ab\n", "a\r\n\r\nb", "a\n\nb", "\u4e2d", "\U0001f600"])
def test_blocks_of_text_lose_nothing_and_cut_no_character(tmp_path, monkeypatch, unit):
    monkeypatch.setattr("megatron.tokenizer.records.TEXT_BLOCK_BYTES", 50)
    content = (unit * 100).encode()
    (tmp_path / "a").write_bytes(content)
    with open(tmp_path / "a", "rb") as stream:
        blocks = list(text_blocks(stream))
    assert b"".join(blocks) == content
    assert all(block.decode() and len(block) <= 50 for block in blocks)
    if "\n" in unit:
        assert all(block.endswith(b"\n") for block in blocks[:-1])


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "1e-9", "1e12", "x", ""])
def test_a_limit_that_is_none_is_refused(value, capsys):
    import argparse

    parser = argparse.ArgumentParser()
    add_max_record_mb(parser)
    assert parser.parse_args([]).max_record_bytes == 64_000_000
    assert parser.parse_args(["--max_record_mb", "1.5"]).max_record_bytes == 1_500_000
    with pytest.raises(SystemExit):
        parser.parse_args(["--max-record-mb", value])
    assert "--max-record-mb" in capsys.readouterr().err
