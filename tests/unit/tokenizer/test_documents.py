import bz2
import gzip
import io
import lzma
import tarfile
import zipfile

import pytest
import zstandard

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


def test_several_zstandard_frames_are_one_file(tmp_path):
    path = tmp_path / "corpus.jsonl.zst"
    frames = [zstandard.compress(line) for line in LINES.splitlines(keepends=True)]
    path.write_bytes(b"".join(frames))
    assert texts_of(path) == [("one",), ("two",)]


def members():
    return {
        "a.jsonl": LINES,
        "folder/b.txt": b"plain",
        "c.jsonl.zst": zstandard.compress(b'{"text": "three"}\n'),
        "picture.png": b"\x89PNG",
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
    said = []
    reader = DocumentReader([str(path)], report=said.append)
    found = [(document.texts[0], document.location) for document in reader]
    assert found == [
        ("one", f"{path}!a.jsonl:1"),
        ("two", f"{path}!a.jsonl:2"),
        ("plain", f"{path}!folder/b.txt"),
        ("three", f"{path}!c.jsonl.zst:1"),
    ]
    assert len(said) == 1
    assert "picture.png" in said[0]


def test_a_folder_is_read_in_the_order_of_names(tmp_path):
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "notes.md").write_text("not read")
    assert texts_of(tmp_path) == [("first",), ("second",)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "cut', "malformed JSON"),
        (b'["text"]', "not a JSON object but a list"),
        (b'{"body": "x"}', "no key 'text' (there is: 'body')"),
        (b'{"text": 5}', "the value of 'text' is not text but a number"),
        (b'{"text": null}', "the value of 'text' is not text but null"),
        (b'{"text": "\xff"}', "invalid UTF-8 at byte 10, 0xff"),
        (b'{"text": "\\ud83d"}', "the value of 'text' holds a lone surrogate"),
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


def test_a_text_file_that_is_not_utf8_is_reported(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes(b"caf\xe9")
    assert skipping(path) == ([], [f"skipped {path}: invalid UTF-8 at byte 3, 0xe9"], 1)


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ".xz"])
def test_a_truncated_file_always_fails(tmp_path, suffix):
    path = tmp_path / f"corpus.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix](LINES * 50)[:-9])
    with pytest.raises(DocumentError, match="damaged or truncated"):
        skipping(path)


@pytest.mark.parametrize("name", ["corpus.tar", "corpus.zip", "corpus.jsonl.zst", "corpus.txt.gz"])
def test_a_foreign_file_fails(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"something else" * 100)
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
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "one"}\n')
    assert texts_of(tmp_path / "a.jsonl") == [("one",)]


@pytest.mark.parametrize(
    ("name", "reason"), [("absent.jsonl", "no such file"), ("data.parquet", "unknown kind")]
)
def test_an_input_that_cannot_be_read_is_named(tmp_path, name, reason):
    (tmp_path / "data.parquet").touch()
    with pytest.raises(DocumentError, match=reason):
        DocumentReader([str(tmp_path / name)])


def test_progress_ends_at_the_size_of_the_files(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES * 1000))
    (tmp_path / "b.txt").write_text("plain")
    reader = DocumentReader([str(tmp_path)])
    assert len(list(reader)) == 2001 == reader.documents
    assert reader.bytes_read == reader.total_bytes > 0
