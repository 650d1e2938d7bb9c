"""A folder of checkpoints at an address, on fsspec's file systems for memory and local folders."""

from __future__ import annotations

import builtins
import itertools
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from megatron.checkpoint.remote import (
    RemoteError,
    RemoteFolder,
    file_system_problem,
    without_secrets,
)

NUMBERS = itertools.count()


@pytest.fixture(params=["memory", "file"])
def address(request, tmp_path) -> str:
    if request.param == "memory":
        return f"memory://bucket{next(NUMBERS)}/run"
    return f"file://{tmp_path}/bucket/run"


def checkpoint(save: Path, step: int, **more: str) -> Path:
    """A folder with the files of a checkpoint; their content does not matter here."""
    folder = save / f"global_step{step}"
    files = {
        "rank_00000.safetensors": f"weights of {step}",
        "state.json": f"{{{step}}}",
        "configs/run.yml": "seed: 1",
        "index.json": f"index of {step}",
        **more,
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_text() for path in files}


class Recorder:
    """A file system that notes what is written, in order, and may fail."""

    def __init__(self, files, *, fail_at: str = "") -> None:
        self.files, self.fail_at = files, fail_at
        self.written: list[str] = []

    def __getattr__(self, name: str):
        return getattr(self.files, name)

    def put_file(self, local: str, path: str) -> None:
        if self.fail_at and path.endswith(self.fail_at):
            raise ConnectionError("connection reset by peer")
        self.written.append(path)
        self.files.put_file(local, path)

    def pipe_file(self, path: str, content: bytes) -> None:
        self.written.append(path)
        self.files.pipe_file(path, content)


def test_a_checkpoint_comes_back_as_it_was(address, tmp_path):
    folder = checkpoint(tmp_path / "save", 5)
    remote = RemoteFolder("save_copy", address)
    assert (remote.steps(), remote.latest()) == ([], None)
    remote.upload(5, folder, done=set())
    assert (remote.steps(), remote.latest()) == ([5], 5)
    again = RemoteFolder("load", address + "/")
    assert again.download(5, tmp_path / "other") == tmp_path / "other/global_step5"
    assert contents(tmp_path / "other/global_step5") == contents(folder)
    assert (tmp_path / "other/latest").read_text() == "global_step5"
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == [
        "global_step5",
        "latest",
    ]


def test_the_index_is_written_after_all_files_and_the_name_of_the_latest_after_that(
    address, tmp_path
):
    remote = RemoteFolder("save_copy", address)
    remote._files = Recorder(remote._files)
    remote.upload(5, checkpoint(tmp_path, 5), done=set())
    names = [path.rpartition("/run/")[2] for path in remote._files.written]
    assert names[-2:] == ["global_step5/index.json", "latest"]
    assert len(names) == 5


def test_an_interrupted_copy_is_no_checkpoint_and_is_completed_without_a_second_copy(
    address, tmp_path
):
    remote = RemoteFolder("save_copy", address)
    done: set[str] = set()
    remote.upload(3, checkpoint(tmp_path, 3), done=set())
    sound = remote._files
    remote._files = Recorder(sound, fail_at="state.json")
    with pytest.raises(RemoteError, match=r"cannot be written .*connection reset by peer"):
        remote.upload(5, checkpoint(tmp_path, 5), done=done)
    assert (remote.steps(), remote.latest()) == ([3], 3)
    remote._files = Recorder(sound)
    remote.upload(5, tmp_path / "global_step5", done=done)
    assert [Path(path).name for path in remote._files.written] == [
        "state.json",
        "index.json",
        "latest",
    ]
    assert (remote.steps(), remote.latest()) == ([3, 5], 5)


def test_a_later_run_replaces_a_checkpoint_of_the_same_iteration_and_its_other_files(
    address, tmp_path
):
    remote = RemoteFolder("save_copy", address)
    older = checkpoint(tmp_path / "a", 5, **{"rank_00001.safetensors": "of two ranks"})
    remote.upload(5, older, done=set())
    newer = checkpoint(tmp_path / "b", 5, **{"index.json": "another index"})
    sound = remote._files
    remote._files = Recorder(sound, fail_at="state.json")
    with pytest.raises(RemoteError):
        remote.upload(5, newer, done=set())
    assert remote.steps() == []  # a mixture of two checkpoints is none
    remote._files = sound
    remote.upload(5, newer, done=set())
    remote.download(5, tmp_path / "c")
    assert contents(tmp_path / "c/global_step5") == contents(newer)


def test_a_copy_that_is_too_short_is_not_completed_and_made_again(address, tmp_path):
    remote = RemoteFolder("save_copy", address)
    done: set[str] = set()
    folder = checkpoint(tmp_path / "save", 5)

    class Short(Recorder):
        def put_file(self, local: str, path: str) -> None:
            length = 2 if path.endswith("state.json") else None
            self.files.pipe_file(path, Path(local).read_bytes()[:length])

    sound = remote._files
    remote._files = Short(sound)
    with pytest.raises(RemoteError, match="has 2 bytes after it was copied, and 3 here"):
        remote.upload(5, folder, done=done)
    assert remote.steps() == []
    remote._files = sound
    remote.upload(5, folder, done=done)
    remote.download(5, tmp_path / "other")
    assert contents(tmp_path / "other/global_step5") == contents(folder)


@pytest.mark.parametrize("marker", ["", "global_st", "global_step9", "../x"])
def test_without_a_sound_marker_the_last_complete_checkpoint_is_the_latest(
    address, tmp_path, marker
):
    remote = RemoteFolder("load", address)
    for step in (4, 12):
        remote.upload(step, checkpoint(tmp_path, step), done=set())
    remote._files.pipe_file(f"{remote._root}/latest", marker.encode())
    assert remote.latest() == 12


def test_a_missing_iteration_names_those_that_exist(address, tmp_path):
    remote = RemoteFolder("load", address)
    remote.upload(4, checkpoint(tmp_path, 4), done=set())
    with pytest.raises(RemoteError, match=r"no complete checkpoint of iteration 5; found: 4"):
        remote.download(5, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_download_that_fails_leaves_nothing(address, tmp_path):
    remote = RemoteFolder("load", address)
    remote.upload(4, checkpoint(tmp_path, 4), done=set())

    class Cut(Recorder):
        def get_file(self, path: str, local: str) -> None:
            if path.endswith("state.json"):
                raise TimeoutError("read timed out")
            self.files.get_file(path, local)

    remote._files = Cut(remote._files)
    with pytest.raises(RemoteError, match="read timed out"):
        remote.download(4, tmp_path / "other")
    assert not list((tmp_path / "other").iterdir())


def test_an_address_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    remote = RemoteFolder("save_copy", f"file://{tmp_path}/file/run")
    with pytest.raises(RemoteError, match=r"save_copy: file://.*cannot be written"):
        remote.check_writable()


class Store(MemoryFileSystem):
    """An object store: buckets exist or not, and a folder is made by nobody."""

    protocol = "teststore"

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        raise AssertionError("this could make a bucket")

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        if "misspelled" in path:
            raise FileNotFoundError("The specified bucket does not exist")
        return super().pipe_file(path, value)

    def put_file(self, lpath, rpath, **kwargs):
        super().pipe_file(rpath, Path(lpath).read_bytes())


def test_no_bucket_is_made_in_an_object_store(tmp_path):
    fsspec.register_implementation("teststore", Store, clobber=True)
    remote = RemoteFolder("save_copy", f"teststore://bucket{next(NUMBERS)}/run")
    remote.check_writable()
    remote.upload(5, checkpoint(tmp_path, 5), done=set())
    assert remote.latest() == 5
    with pytest.raises(RemoteError, match="The specified bucket does not exist"):
        RemoteFolder("save_copy", "teststore://misspelled/run").check_writable()


def test_trying_an_address_leaves_no_file(address):
    remote = RemoteFolder("save_copy", address)
    remote.check_writable()
    assert remote._files.find(remote._root) == []


def test_a_protocol_may_have_capital_letters(tmp_path):
    RemoteFolder("save_copy", f"FILE://{tmp_path}/run/").check_writable()
    assert (tmp_path / "run").is_dir()


def test_an_unknown_file_system_and_a_missing_package_are_one_line(monkeypatch):
    assert "no file system s4" in (file_system_problem("s4://bucket/run") or "")
    assert file_system_problem("memory://run") is None

    def no_package(protocol: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "get_filesystem_class", no_package)
    assert file_system_problem("s3://bucket/run") == "s3://bucket/run: Install s3fs to access S3"
    real_import = builtins.__import__

    def without_fsspec(name: str, *args, **options):
        if name == "fsspec":
            raise ModuleNotFoundError(name)
        return real_import(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without_fsspec)
    with pytest.raises(RemoteError) as caught:
        RemoteFolder("load", "memory://run")
    (line,) = caught.value.messages
    assert line.startswith("load: memory://run needs the package fsspec; pip install -r")


def test_messages_contain_no_credentials(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    error = OSError("ftp://me:hunter2@host said no to wJalrXUtnFEMI and hf_abcdefgh\nsecond line")
    text = without_secrets(error)
    for secret in ("wJalrXUtnFEMI", "hf_abcdefgh", "hunter2"):
        assert secret not in text
    assert "said no to <redacted>" in text
    assert "\n" not in text
