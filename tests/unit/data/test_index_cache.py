"""A large index is scanned once; other processes find the result, and notice when it is void."""

import json
import logging
import multiprocessing
import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from megatron import files
from megatron.data import index_cache, index_format
from megatron.data.errors import DataError
from megatron.data.index_cache import IndexCache
from megatron.data.index_format import digest_of_sizes
from megatron.data.indexed_dataset import MMapIndexedDataset

DOCUMENTS = [np.arange(1 + n % 3) for n in range(40)]


@pytest.fixture(autouse=True)
def scans(monkeypatch):
    """Counts scans; data sets of 30 documents or more count as very large."""
    scanned = []
    original = index_format._scan

    def scan(parts):
        scanned.append(parts.index_path.name)
        return original(parts)

    monkeypatch.setattr(index_format, "_scan", scan)
    monkeypatch.setattr(index_format, "RECORDED_DOCUMENTS", 30)
    return scanned


@pytest.fixture
def prefix(write_dataset, scans):
    """A data set of 40 documents; how often it was scanned counts from here."""
    path = write_dataset("text", DOCUMENTS).path
    scans.clear()
    return path


def records(folder):
    return sorted(folder.glob("*_index_*.json"))


def contents(dataset):
    return [dataset.sizes.tolist(), dataset.doc_idx.tolist(), dataset.tokens.tolist()]


def test_a_large_index_is_scanned_by_the_first_process_only(prefix, scans, tmp_path):
    first = MMapIndexedDataset(prefix, cache=IndexCache())
    second = MMapIndexedDataset(prefix, cache=IndexCache())
    assert contents(second) == contents(first)
    assert second.dtype == first.dtype
    assert first.sizes_digest == second.sizes_digest == digest_of_sizes(first.sizes)
    assert scans == ["text.idx"]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".bin", ".idx", ".json"]


def test_a_small_index_and_a_tool_leave_no_file(write_dataset, prefix, scans, tmp_path):
    few = write_dataset("few", DOCUMENTS[:29]).path
    scans.clear()
    for _ in range(2):
        MMapIndexedDataset(few, cache=IndexCache())
        MMapIndexedDataset(prefix)
    assert len(scans) == 4
    assert not records(tmp_path)


def test_a_worker_process_uses_the_same_record(prefix, scans):
    dataset = MMapIndexedDataset(prefix, cache=IndexCache())
    assert contents(pickle.loads(pickle.dumps(dataset))) == contents(dataset)
    assert len(scans) == 1


@pytest.mark.parametrize("suffix", [".idx", ".bin"])
def test_a_file_that_changed_in_place_is_scanned_again(prefix, scans, suffix):
    MMapIndexedDataset(prefix, cache=IndexCache())
    path = f"{prefix}{suffix}"
    times = os.stat(path)
    time.sleep(0.02)  # the clock of a file system ticks
    with open(path, "rb+") as stream:
        stream.seek(34 + 4 * 40 + 8 if suffix == ".idx" else 40)  # the pointer to item 1
        stream.write(b"\6")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a copying program does
    if suffix == ".idx":
        with pytest.raises(DataError, match="item 1 points to byte 6"):
            MMapIndexedDataset(prefix, cache=IndexCache())
    else:
        MMapIndexedDataset(prefix, cache=IndexCache())
    assert len(scans) == 2


def test_a_data_set_that_was_replaced_is_scanned_again(write_dataset, prefix, scans):
    MMapIndexedDataset(prefix, cache=IndexCache())
    write_dataset("text", DOCUMENTS[::-1])
    scans.clear()
    found = MMapIndexedDataset(prefix, cache=IndexCache())
    assert scans == ["text.idx"]
    assert found.sizes.tolist() == [len(document) for document in DOCUMENTS[::-1]]
    assert found.sizes_digest == digest_of_sizes(found.sizes)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-5],
        lambda text: "",
        lambda text: text.replace("<u2", "<i2"),
        lambda text: text.replace('"has_documents": true', '"has_documents": false'),
        lambda text: json.dumps({**json.loads(text), "version": 99}),
        lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "crc32"}),
        lambda text: "[1]",
        lambda text: text + " " * 100_000,
    ],
)
def test_a_damaged_record_is_reported_and_made_again(prefix, scans, tmp_path, caplog, damage):
    expected = contents(MMapIndexedDataset(prefix, cache=IndexCache()))
    (record,) = records(tmp_path)
    sound = record.read_text()
    record.write_text(damage(sound))
    assert contents(MMapIndexedDataset(prefix, cache=IndexCache())) == expected
    assert str(record) in caplog.text
    assert "scanned again" in caplog.text
    assert len(scans) == 2
    assert record.read_text() == sound


def test_a_damaged_index_leaves_no_record(write_dataset, scans, tmp_path):
    path = write_dataset("text", DOCUMENTS).path
    with open(f"{path}.idx", "rb+") as stream:
        stream.seek(34)
        stream.write(b"\xff\xff\xff\xff")
    with pytest.raises(DataError, match="negative size"):
        MMapIndexedDataset(path, cache=IndexCache())
    assert not records(tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_the_record_repeats_that_documents_are_missing(prefix, scans, caplog):
    with open(f"{prefix}.idx", "rb+") as stream:
        stream.seek(-8, os.SEEK_END)
        stream.write((39).to_bytes(8, "little"))
    for _ in range(2):
        caplog.clear()
        dataset = MMapIndexedDataset(prefix, cache=IndexCache())
        assert dataset.doc_idx.tolist() == list(range(41))
        assert "does not cover the 40 items" in caplog.text
    assert len(scans) == 1


def read_only(monkeypatch, *folders):
    """Folders in which nothing can be created, not by root either."""
    original_path, original_open = files.temporary_path, open

    def refuse(path):
        if os.path.dirname(path) in map(str, folders):
            raise PermissionError(13, "Permission denied", str(path))

    def temporary_path(path):
        refuse(path)
        return original_path(path)

    def guarded_open(path, mode):
        refuse(path)
        return original_open(path, mode)

    monkeypatch.setattr(files, "temporary_path", temporary_path)
    monkeypatch.setattr(index_cache, "open", guarded_open, raising=False)


def test_beside_read_only_data_the_user_cache_is_used(prefix, scans, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    read_only(monkeypatch, tmp_path)
    for _ in range(2):
        MMapIndexedDataset(prefix, cache=IndexCache())
    assert len(scans) == 1
    assert not records(tmp_path)
    assert len(records(tmp_path / "cache" / "odm-neox")) == 1


def test_without_a_writable_folder_every_process_scans_and_one_line_reports_it(
    prefix, scans, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    read_only(monkeypatch, tmp_path, tmp_path / "cache" / "odm-neox")
    for _ in range(2):
        cache = IndexCache()
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            MMapIndexedDataset(prefix, cache=cache)
            cache.report()
        (line,) = caplog.messages
        assert str(tmp_path) in line
        assert "data_cache_dir" in line
    assert len(scans) == 2


def test_data_sets_of_one_name_share_a_cache_folder_without_a_mix_up(write_dataset, tmp_path):
    caches = tmp_path / "caches"
    for _ in range(2):
        for name, documents in (("a/text", DOCUMENTS), ("b/text", DOCUMENTS[::-1])):
            path = tmp_path / name
            if not path.parent.exists():
                write_dataset(name, documents)
            found = MMapIndexedDataset(path, cache=IndexCache(caches))
            assert found.sizes_digest == digest_of_sizes(found.sizes)
            assert found.sizes.tolist() == [len(document) for document in documents]
    assert len(records(caches)) == 2


@pytest.mark.parametrize("has_locks", [True, False])
def test_processes_at_the_same_time_scan_once_where_there_are_locks(
    prefix, scans, tmp_path, monkeypatch, has_locks
):
    def no_locks(file, operation):
        raise OSError(37, "No locks available")

    if not has_locks:
        monkeypatch.setattr("fcntl.flock", no_locks)
    slow = index_format._scan

    def scan(parts):
        time.sleep(0.05)
        return slow(parts)

    monkeypatch.setattr(index_format, "_scan", scan)
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(MMapIndexedDataset, prefix, cache=IndexCache()) for _ in range(12)]
    assert {job.result().sizes_digest for job in jobs} == {digest_of_sizes(jobs[0].result().sizes)}
    assert (len(scans) == 1) is has_locks
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".bin", ".idx", ".json"]


def test_a_lock_is_never_held_twice_though_its_file_is_removed(tmp_path):
    inside, most, guard = [], [], threading.Lock()

    def work(_):
        with IndexCache(tmp_path).one_process_at_a_time(tmp_path / "text"):
            with guard:
                inside.append(1)
                most.append(len(inside))
            time.sleep(0.002)
            with guard:
                inside.pop()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(60)))
    assert max(most) == 1
    assert not list(tmp_path.iterdir())


def _hold_and_die(folder, is_held):
    with IndexCache(folder).one_process_at_a_time("text"):
        is_held.set()
        time.sleep(60)


def test_a_killed_process_does_not_keep_the_lock(tmp_path):
    context = multiprocessing.get_context("fork")
    is_held = context.Event()
    process = context.Process(target=_hold_and_die, args=(tmp_path, is_held))
    process.start()
    assert is_held.wait(20)
    process.kill()
    process.join(20)
    began = time.monotonic()
    with IndexCache(tmp_path).one_process_at_a_time("text"):
        assert time.monotonic() - began < 10
    assert not list(tmp_path.iterdir())


def test_nothing_is_recorded_on_a_file_system_without_times(prefix, scans, tmp_path, monkeypatch):
    monkeypatch.setattr(index_format, "file_facts", lambda stat: None)
    for _ in range(2):
        MMapIndexedDataset(prefix, cache=IndexCache())
    assert len(scans) == 2
    assert not records(tmp_path)
