"""A file is whole, or it is the one that was there before."""

from __future__ import annotations

import errno
import importlib
import json
import math
import os
import resource
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron import files
from megatron.files import (
    atomic_writer,
    crc32_of_file,
    fsync_folder,
    replace_folder,
    write_json_atomic,
    write_text_atomic,
)

ROOT = Path(__file__).resolve().parents[2]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_new_content_replaces_the_old_when_the_block_ends(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with atomic_writer(path) as stream:
        stream.write(b"new")
        stream.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_in_the_block_keeps_the_old_content_and_leaves_nothing(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write_half():
        with atomic_writer(path) as stream:
            stream.write(b"half")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_full_disk_keeps_the_old_content_and_leaves_nothing(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    code = (
        "import sys; from pathlib import Path; from megatron.files import write_text_atomic\n"
        "write_text_atomic(Path(sys.argv[1]), 'x' * 20000)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)),
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert f"OSError: [Errno {errno.EFBIG}]" in run.stderr
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_missing_folder_is_the_error_that_is_told(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_writer(tmp_path / "missing/file"):
        pass


@given(st.text())
def test_text_comes_back_as_it_was(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("text") / "file"
    try:
        content = text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair is no text
        return
    write_text_atomic(path, text)
    assert path.read_bytes() == content


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_json_keeps_every_bit_of_a_float(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "file"
    write_json_atomic(path, {"value": value})
    read = json.loads(path.read_text())["value"]
    assert (read, math.copysign(1, read)) == (value, math.copysign(1, value))


def test_json_refuses_nan_and_keeps_the_old_content(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ValueError, match="JSON"):
        write_json_atomic(path, [math.nan])
    assert path.read_text() == "old"


def test_the_file_gets_the_permissions_of_any_new_file(tmp_path):
    write_text_atomic(tmp_path / "ours", "")
    (tmp_path / "plain").touch()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("size", [0, 1, (1 << 22) + 17])
def test_the_checksum_is_that_of_all_bytes(tmp_path, size):
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    assert crc32_of_file(tmp_path / "file") == zlib.crc32(content)


def test_a_file_system_that_syncs_no_folders_is_no_error(tmp_path, monkeypatch):
    def refuse(number):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(files.os, "fsync", refuse)
    fsync_folder(tmp_path)


@pytest.mark.parametrize(
    ("error", "start"),
    [
        (OSError(28, "No space left", "/x"), "/x: No space left; check"),
        (OSError(21, "Is a directory", "/.x.tmp", None, "/x"), "/x: Is a directory; check"),
        (OSError(5, "Input/output error"), "input or output: Input/output error; check"),
        (OSError("a line of somebody"), "a line of somebody"),
        (ValueError("key: wrong"), "key: wrong"),
    ],
)
def test_a_user_reads_the_path_and_the_reason_and_no_error_number(error, start):
    assert files.describe_error(error).startswith(start)


@pytest.mark.parametrize(
    ("tool", "arguments", "work"),
    [
        ("cloze_task", ["text"], "read_documents"),
        ("convert_from_hf", ["--input_dir", "a", "--output_dir", "b"], "convert_from_hf"),
        ("convert_to_hf", ["--input_dir", "a", "--output_dir", "b"], "find_source"),
        ("inspect_checkpoint", ["a"], "open_source"),
        ("merge_datasets", ["--input", "a", "--output-prefix", "b"], "find_prefixes"),
        ("plot_mixture", ["a"], "read_history"),
        ("reshard_checkpoint", ["--input", "a", "--output", "b"], "find_source"),
        ("upload", ["a", "--repo_id", "b/c"], "_make_job"),
    ],
)
def test_every_tool_names_a_full_disk_so(tool, arguments, work, monkeypatch, capsys):
    module = importlib.import_module(f"tools.{tool}")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", "/there")

    monkeypatch.setattr(module, work, full)
    try:
        code = module.main(arguments)
    except SystemExit as end:
        code = end.code
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "/there: No space left on device; check" in line
    assert "Errno" not in line


def test_a_disk_error_while_syncing_a_folder_is_told(tmp_path, monkeypatch):
    def fail(number):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        fsync_folder(tmp_path)


@pytest.fixture
def two_folders(tmp_path) -> tuple[Path, Path]:
    """A new folder and the one that it is to replace."""
    new, old = tmp_path / "run.tmp", tmp_path / "run"
    for folder in (new, old):
        folder.mkdir()
        (folder / "x").write_text(folder.name)
    return new, old


def test_a_folder_takes_the_place_of_another(two_folders, tmp_path):
    new, old = two_folders
    (tmp_path / "run.old.tmp").mkdir()  # a crash left it
    replace_folder(new, old)
    assert (old / "x").read_text() == "run.tmp"
    assert list(tmp_path.iterdir()) == [old]


def test_a_folder_that_cannot_take_the_place_leaves_the_old_one(two_folders, tmp_path, monkeypatch):
    new, old = two_folders
    rename = os.replace

    def refuse(source: Path, target: Path) -> None:
        if source == new:
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(OSError, match="No space left"):
        replace_folder(new, old)
    assert (old / "x").read_text() == "run"
    assert sorted(tmp_path.iterdir()) == [old, new]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs special files")
def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    (tmp_path / "folder").mkdir()
    before = names(tmp_path)
    for name in before:
        with pytest.raises(OSError, match=r"Is no ordinary file|Is a directory"):
            write_text_atomic(tmp_path / name, "x")
    with pytest.raises(OSError, match="Is a directory"):
        write_text_atomic(Path(), "x")
    assert names(tmp_path) == before
    assert (tmp_path / "link").is_symlink()
