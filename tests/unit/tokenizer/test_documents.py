import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile

import pytest
import zstandard

from megatron.tokenizer import decompression
from megatron.tokenizer.documents import DocumentReader
from megatron.tokenizer.errors import DocumentError

LINES = b'{"text": "one"}\n{"text": "two"}\n'
COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def texts_of(path, **settings):
    return [document.texts for document in DocumentReader([str(path)], **settings)]


def skipping(path, **settings):
    said = []
    reader = DocumentReader([str(path)], on_error="skip", report=said.append, **settings)
    return [document.texts[0] for document in reader], said, reader.problems


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("content", ["jsonl", "json", "txt"])
def test_every_compression_reads_like_the_plain_file(tmp_path, content, suffix):
    path = tmp_path / f"corpus.{content}{suffix}"
    path.write_bytes(COMPRESS[suffix](LINES))
    expected = [(LINES.decode(),)] if content == "txt" else [("one",), ("two",)]
    assert texts_of(path) == expected


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ".xz"])
def test_compressed_files_one_behind_the_other_are_one_file(tmp_path, suffix):
    path = tmp_path / f"corpus.jsonl{suffix}"
    frames = [COMPRESS[suffix](line) for line in LINES.splitlines(keepends=True)]
    path.write_bytes(b"".join(frames))
    assert texts_of(path) == [("one",), ("two",)]


FIRST, SECOND = LINES.splitlines(keepends=True)


@pytest.mark.parametrize("zeros", [4, 8, 5 << 20])
def test_zeros_between_and_behind_xz_streams_hide_nothing(tmp_path, zeros):
    path = tmp_path / "corpus.jsonl.xz"
    padding = bytes(zeros)
    path.write_bytes(lzma.compress(FIRST) + padding + lzma.compress(SECOND) + padding)
    assert texts_of(path) == [("one",), ("two",)]


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ".xz"])
@pytest.mark.parametrize("rest", ["no stream", "FIRST", "half a stream"])
def test_what_is_no_stream_behind_a_stream_is_an_error(tmp_path, suffix, rest):
    compress = COMPRESS[suffix]
    behind = {
        "no stream": b"x" + compress(SECOND),
        "FIRST": FIRST,
        "half a stream": compress(SECOND * 100)[:20],
    }[rest]
    path = tmp_path / f"corpus.jsonl{suffix}"
    path.write_bytes(compress(FIRST) + behind)
    with pytest.raises(DocumentError, match=r"corpus\.jsonl.*damaged or truncated"):
        skipping(path)


@pytest.mark.parametrize("zeros", [1, 5, 6])
def test_an_xz_file_with_a_wrong_number_of_zeros_is_damaged(tmp_path, zeros):
    path = tmp_path / "corpus.jsonl.xz"
    path.write_bytes(lzma.compress(FIRST) + bytes(zeros))
    with pytest.raises(DocumentError, match=f"{zeros} zeros? behind compressed stream 1"):
        texts_of(path)


@pytest.mark.parametrize("suffix", [".bz2", ".xz"])
def test_text_larger_than_the_buffers_is_read_whole(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(decompression, "BUFFER_BYTES", 100)
    lines = [f'{{"text": "{number}"}}\n' for number in range(3000)]
    path = tmp_path / f"corpus.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix]("".join(lines).encode()) * 2)
    reader = DocumentReader([str(path)])
    assert [document.texts[0] for document in reader] == [*map(str, range(3000))] * 2
    assert reader.bytes_read == reader.total_bytes


def members():
    return {
        "a.jsonl": LINES,
        "folder/b.txt": b"plain",
        "c.jsonl.zst": zstandard.compress(b'{"text": "three"}\n'),
        "folder/picture.png": b"\x89PNG",
    }


def write_tar(path, mode):
    with tarfile.open(path, mode) as archive:
        for name, content in members().items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("name", ["corpus.tar", "corpus.tar.gz", "corpus.tgz", "corpus.zip"])
def test_archives_give_their_text_members_and_name_the_others(tmp_path, name):
    path = tmp_path / name
    if name.endswith(".zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, content in members().items():
                archive.writestr(member, content)
    else:
        write_tar(path, "w" if name.endswith(".tar") else "w:gz")
    reader = DocumentReader([str(path)])
    found = [(document.texts[0], document.location) for document in reader]
    assert found == [
        ("one", f"{path}!a.jsonl:1"),
        ("two", f"{path}!a.jsonl:2"),
        ("plain", f"{path}!folder/b.txt"),
        ("three", f"{path}!c.jsonl.zst:1"),
    ]
    (line,) = reader.left_out.lines()
    assert f": 1 .png (the first: {path}!folder/picture.png)" in line


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE, "zip"])
def test_a_link_in_an_archive_is_told_and_counted(tmp_path, kind):
    if kind == "zip":
        path = tmp_path / "corpus.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("blob", LINES)
            entry = zipfile.ZipInfo("link.jsonl")
            entry.external_attr = 0o120777 << 16
            archive.writestr(entry, "blob")
    else:
        path = tmp_path / "corpus.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            blob = tarfile.TarInfo("blob")
            blob.size = len(LINES)
            archive.addfile(blob, io.BytesIO(LINES))
            link = tarfile.TarInfo("link.jsonl")
            link.type, link.linkname = kind, "blob"
            archive.addfile(link)
    reader = DocumentReader([str(path)])
    assert list(reader) == []
    kinds, links = reader.left_out.lines()
    assert "1 without extension" in kinds
    assert links.startswith("left out links in archives, which are not followed")
    assert links.endswith(f": 1; the first: {path}!link.jsonl")


def test_a_folder_is_read_in_the_order_of_names(tmp_path):
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "c.md").write_text("third")
    (tmp_path / "d.docx").write_text("not read")
    assert texts_of(tmp_path) == [("first",), ("second",), ("third",)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "cut', "malformed JSON, Invalid control character at column 14"),
        (b'{"text": 5', "malformed JSON, Expecting ',' delimiter at column"),
        (b'["text"]', "not a JSON object but a list, write one object per line"),
        (b"[", "JSON over several lines, write one object per line"),
        (b" {\r", "JSON over several lines, write one object per line"),
        (b'{"body": "x"}', "no key 'text' (there is: 'body')"),
        (b'{"text": 5}', "the value of 'text' is not text but a number"),
        (b'{"text": null}', "the value of 'text' is not text but null"),
        (b'{"text": "\xff"}', "invalid UTF-8 at byte 10, 0xff"),
        (b'{"text": "\\ud83d"}', "the value of 'text' contains half a character"),
        (b"[" * 100_000, "malformed JSON"),
    ],
)
def test_a_bad_line_is_reported_with_its_number_and_counted(tmp_path, line, reason):
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b'{"text": "one"}\n\n' + line + b'\n{"text": "two"}\n')
    kept, said, problems = skipping(path)
    assert kept == ["one", "two"]
    assert problems == 1
    assert f"{path}:3: {reason}" in said[0]
    with pytest.raises(DocumentError) as raised:
        texts_of(path)
    assert f"{path}:3: {reason}" in str(raised.value)
    assert "--on-error skip" in str(raised.value)


def test_the_first_hundred_bad_records_are_told_and_all_are_counted(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b"5\n" * 103 + b'{"text": "last"}\n')
    kept, said, problems = skipping(path)
    assert (kept, problems, len(said)) == (["last"], 103, 101)
    assert said[99].startswith(f"skipped {path}:100: ")
    assert said[100] == "further skipped records are counted but not listed"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"caf\xe9", "invalid UTF-8 at byte 3, 0xe9"),
        ("caf\xe9".encode("utf-16"), "a file in UTF-16, convert it to UTF-8"),
        (b"\xfe\xff\0c\0a", "a file in UTF-16, convert it to UTF-8"),
    ],
)
def test_a_text_file_that_is_not_utf8_is_reported(tmp_path, content, reason):
    path = tmp_path / "other.txt"
    path.write_bytes(content)
    assert skipping(path) == ([], [f"skipped {path}: {reason}"], 1)


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ".xz"])
def test_a_truncated_file_always_fails(tmp_path, suffix):
    path = tmp_path / f"corpus.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix](LINES * 50)[:-9])
    with pytest.raises(DocumentError, match="damaged or truncated"):
        skipping(path)


@pytest.mark.parametrize("content", [b"something else" * 100, b""])
@pytest.mark.parametrize(
    "name",
    ["a.tar", "a.zip", "a.jsonl.zst", "a.tar.zst", "a.txt.gz", "a.csv.xz", "a.md.bz2", "a.tgz"],
)
def test_a_foreign_or_empty_file_fails(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DocumentError, match="damaged or truncated"):
        texts_of(path)


def test_several_keys_and_keys_inside_objects(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"title": "t", "meta": {"source": "web"}, "a.b": "dotted"}\r\n')
    assert texts_of(path, keys=["title", "meta.source", "a.b"]) == [("t", "web", "dotted")]


def test_a_plain_text_has_no_second_key(tmp_path):
    (tmp_path / "a.txt").write_text("plain")
    with pytest.raises(DocumentError, match="has no keys"):
        texts_of(tmp_path / "a.txt", keys=["title", "text"])


def test_a_byte_order_mark_is_no_text(tmp_path):
    for rest, texts in (
        (b'{"text": "one"}\n', ["one"]),
        (b"", []),
        (b"\r\n" + LINES, ["one", "two"]),
    ):
        (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + rest)
        assert [text for (text,) in texts_of(tmp_path / "a.jsonl")] == texts


@pytest.mark.parametrize(
    ("name", "reason"), [("absent.jsonl", "no such file"), ("data.docx", "unknown kind")]
)
def test_an_input_that_cannot_be_read_is_named(tmp_path, name, reason):
    (tmp_path / "data.docx").touch()
    with pytest.raises(DocumentError, match=reason):
        DocumentReader([str(tmp_path / name)])


def test_progress_ends_at_the_size_of_the_files(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES * 1000))
    (tmp_path / "b.txt").write_text("plain")
    reader = DocumentReader([str(tmp_path)])
    assert len(list(reader)) == 2001 == reader.documents
    assert reader.bytes_read == reader.total_bytes > 0


def tar_of_texts(*texts):
    """An archive whose members take two blocks of 512 bytes each: a header and a text."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for number, text in enumerate(texts):
            member = tarfile.TarInfo(f"{number}.txt")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    return content.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        lambda archive: archive[:2048],  # between two members
        lambda archive: archive[:2148],  # inside a header
        lambda archive: archive[:2048] + b"x" * 100 + archive[2148:],  # a header overwritten
    ],
)
def test_a_tar_archive_that_does_not_reach_its_end_mark_fails(tmp_path, damage):
    path = tmp_path / "corpus.tar"
    path.write_bytes(tar_of_texts(b"one", b"two", b"three"))
    assert texts_of(path) == [("one",), ("two",), ("three",)]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DocumentError, match=r"corpus\.tar: damaged or truncated .*at byte 2048"):
        skipping(path)


def test_tar_archives_one_behind_the_other_are_read_as_one(tmp_path):
    path = tmp_path / "corpus.tar"
    path.write_bytes(tar_of_texts(b"one") + tar_of_texts(b"two"))
    assert texts_of(path) == [("one",), ("two",)]


def test_members_of_other_kinds_are_counted_by_kind(tmp_path):
    with zipfile.ZipFile(tmp_path / "corpus.zip", "w") as archive:
        for name in ("a.png", "b.PNG", "c.tar", "d.txt", "e.parquet", "f.log.gz", "g\n.x y"):
            archive.writestr(name, "plain")
    reader = DocumentReader([str(tmp_path / "corpus.zip")])
    assert [document.texts[0] for document in reader] == ["plain"]
    assert reader.left_out.kinds == {
        ".png": 2,
        ".tar in archives": 1,
        ".parquet in archives": 1,
        ".log.gz": 1,
        "other": 1,
    }


def test_what_a_folder_holds_besides_text_is_one_line_for_the_end(tmp_path):
    for name in ("a.txt", "b.pdf", "c.jsonl.lz4", "d.parquet.gz", "old_text_document.meta.json"):
        (tmp_path / name).write_text("{}")
    reader = DocumentReader([str(tmp_path)])
    assert [path.name for path in reader.files] == ["a.txt"]
    (line,) = reader.left_out.lines()
    assert line.startswith("left out 3 files")
    assert ": 1 .lz4, 1 .parquet.gz, 1 .pdf (" in line
    assert f"(the first: {tmp_path / 'b.pdf'})" in line


def test_folders_behind_links_are_read_once_and_without_end(tmp_path):
    (tmp_path / "elsewhere/deep").mkdir(parents=True)
    (tmp_path / "elsewhere/deep/b.txt").write_text("linked")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/a.txt").write_text("own")
    (tmp_path / "corpus/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/up").symlink_to(tmp_path / "corpus")
    assert texts_of(tmp_path / "corpus") == [("own",), ("linked",)]


def test_a_part_of_a_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("here")
    (tmp_path / "b.txt").symlink_to(tmp_path / "gone")
    with pytest.raises(DocumentError, match=r"b\.txt: a link to a file that is not there"):
        DocumentReader([str(tmp_path)])

    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DocumentError, match=r"cannot be listed \(Permission denied\)"):
        DocumentReader([str(tmp_path)])


def test_an_input_without_a_name_is_not_the_current_folder():
    with pytest.raises(DocumentError, match="an input has no name"):
        DocumentReader(["", "a.jsonl"])
