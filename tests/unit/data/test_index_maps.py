import binascii
import logging
import os
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron import files
from megatron.data import index_cache, index_format, index_maps
from megatron.data.index_cache import IndexCache
from megatron.data.index_maps import (
    document_order,
    document_stream,
    sample_tokens,
    shuffled_stream,
)
from megatron.data.indexed_dataset import MMapIndexedDataset, MMapIndexedDatasetBuilder


def make_documents(seed, num_documents=30, longest=9):
    random = np.random.default_rng(seed)
    return [random.integers(0, 1000, random.integers(0, longest + 1)) for _ in range(num_documents)]


def cached_files(folder):
    return sorted(folder.glob("*.npy"))


def test_document_order_is_a_permutation_fixed_for_all_time():
    assert document_order(1234, "books", np.arange(8)).tolist() == [4, 0, 3, 6, 2, 1, 5, 7]
    many = document_order(7, "books", np.arange(1000, 2000))
    assert sorted(many.tolist()) == list(range(1000, 2000))


def test_document_order_depends_on_seed_and_domain():
    documents = np.arange(100)
    orders = [
        document_order(seed, domain, documents).tolist()
        for seed, domain in [(1, "a"), (2, "a"), (1, "b"), (1, "ab")]
    ]
    assert len({tuple(order) for order in orders}) == 4


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=12),
    seq_length=st.integers(1, 9),
    seed=st.integers(0, 5),
)
def test_samples_are_windows_of_the_stream_with_one_token_in_common(
    sizes, seq_length, seed, tmp_path_factory
):
    tokens = np.arange(sum(sizes))
    documents = np.split(tokens, np.cumsum(sizes)[:-1])
    dataset = write_plain(tmp_path_factory.mktemp("data"), documents)
    order = document_order(seed, "d", np.arange(len(sizes)))
    stream = document_stream(order, dataset.sizes)
    whole = np.concatenate([documents[document] for document in order])
    num_samples = max(0, (len(whole) - 1) // seq_length)
    assert stream.num_samples(seq_length) == num_samples
    samples = sample_tokens(dataset, stream, np.arange(num_samples), seq_length=seq_length)
    for number, sample in enumerate(samples):
        first = number * seq_length
        assert sample.tolist() == whole[first : first + seq_length + 1].tolist()


def write_plain(folder, documents):
    with MMapIndexedDatasetBuilder(folder / "toy.bin", np.int32) as builder:
        for document in documents:
            builder.add_item(document)
        builder.finalize(folder / "toy.idx")
    return MMapIndexedDataset(folder / "toy")


@pytest.fixture(autouse=True)
def large(monkeypatch):
    """20 documents count as many, and 1,500 as very many."""
    monkeypatch.setattr(index_maps, "SMALL_INDEX", 20)
    for module in (index_maps, index_format):
        monkeypatch.setattr(module, "RECORDED_DOCUMENTS", 1500)


def build_stream(dataset, *, cache_dir=None, cache=None, **changes):
    documents = changes.pop("documents", range(len(dataset)))
    cache = cache or IndexCache(cache_dir)
    arguments = {"seed": 1, "domain": "d", "cache": cache, **changes}
    return shuffled_stream(dataset, documents, **arguments)


def test_the_order_is_built_once_and_kept_beside_the_data(write_dataset, tmp_path):
    dataset = write_dataset("toy", make_documents(0))
    first = build_stream(dataset)
    (file,) = cached_files(tmp_path)
    modified = file.stat().st_mtime_ns
    second = build_stream(dataset)
    assert first.order.tolist() == second.order.tolist()
    assert first.offsets.tolist() == second.offsets.tolist()
    assert file.stat().st_mtime_ns == modified
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]


def test_whatever_changes_the_order_has_a_file_of_its_own(write_dataset, tmp_path):
    dataset = write_dataset("toy", make_documents(0))
    build_stream(dataset)
    build_stream(dataset, seed=2)
    build_stream(dataset, domain="e")
    build_stream(dataset, documents=range(25))
    build_stream(dataset, documents=np.arange(26))
    build_stream(write_dataset("toy", make_documents(1)))
    assert len(cached_files(tmp_path)) == 6


def test_a_few_documents_are_ordered_without_a_file(write_dataset, tmp_path):
    dataset = write_dataset("toy", make_documents(0))
    few = build_stream(dataset, documents=range(3, 22))
    assert few.order.tolist() == document_order(1, "d", np.arange(3, 22)).tolist()
    assert not cached_files(tmp_path)


def test_a_range_and_a_list_of_the_same_documents_have_the_same_order(write_dataset):
    dataset = write_dataset("toy", make_documents(0))
    of_range, of_list = (
        build_stream(dataset, documents=some) for some in (range(2, 28), np.arange(2, 28))
    )
    assert of_range.order.tolist() == of_list.order.tolist()
    assert of_range.offsets.tolist() == of_list.offsets.tolist()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-3],
        lambda content: content[:20],
        lambda content: b"",
        lambda content: content[:-8] + b"\1" * 8,
        lambda content: content.replace(b"<i8", b"<f8"),
    ],
)
def test_a_damaged_cache_file_is_built_again(write_dataset, tmp_path, caplog, damage):
    dataset = write_dataset("toy", make_documents(0))
    expected = build_stream(dataset).order.tolist()
    (file,) = cached_files(tmp_path)
    whole = file.read_bytes()
    file.unlink()  # a new file: the old one is still mapped
    file.write_bytes(damage(whole))
    assert build_stream(dataset).order.tolist() == expected
    assert "damaged" in caplog.text
    assert file.read_bytes() == whole


def test_the_cache_file_is_an_ordinary_array_with_a_checksum(write_dataset, tmp_path):
    stream = build_stream(write_dataset("toy", make_documents(0)))
    content = np.load(cached_files(tmp_path)[0])
    assert content[1:].tolist() == [*stream.order, *stream.offsets]
    assert content[0] == zlib.crc32(content[1:].tobytes())


@pytest.mark.parametrize("has_locks", [True, False])
def test_builders_at_the_same_time_do_not_disturb_each_other(
    write_dataset, tmp_path, monkeypatch, has_locks
):
    dataset = write_dataset("toy", make_documents(0, num_documents=2000))
    built = []
    original = index_maps.document_order

    def document_order(*arguments):
        built.append(arguments)
        time.sleep(0.05)
        return original(*arguments)

    def no_locks(file, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(index_maps, "document_order", document_order)
    if not has_locks:
        monkeypatch.setattr("fcntl.flock", no_locks)
    with ThreadPoolExecutor(8) as pool:
        streams = list(pool.map(lambda _: build_stream(dataset), range(16)))
    assert all(np.array_equal(stream.order, streams[0].order) for stream in streams)
    assert len(cached_files(tmp_path)) == 1
    assert (len(built) == 1) is has_locks
    assert not list(tmp_path.glob(".*"))  # neither locks nor temporary files


def refuse_to_write_in(monkeypatch, *folders):
    """A read-only folder that root cannot write either."""
    original = files.temporary_path

    def temporary_path(path):
        if path.parent in folders:
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(files, "temporary_path", temporary_path)


def test_where_the_data_cannot_be_written_the_user_cache_is_used(
    write_dataset, tmp_path, monkeypatch
):
    dataset = write_dataset("toy", make_documents(0))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    refuse_to_write_in(monkeypatch, tmp_path)
    build_stream(dataset)
    assert not cached_files(tmp_path)
    assert len(cached_files(tmp_path / "cache" / "odm-neox")) == 1


def test_without_any_writable_folder_all_is_computed_and_one_line_reports_it(
    write_dataset, tmp_path, monkeypatch, caplog
):
    datasets = [write_dataset(name, make_documents(0)) for name in ("one", "two")]
    expected = build_stream(datasets[0], cache_dir=tmp_path / "given").order.tolist()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    refuse_to_write_in(monkeypatch, tmp_path, tmp_path / "cache" / "odm-neox")
    cache = IndexCache()
    with caplog.at_level(logging.WARNING):
        assert build_stream(datasets[0], cache=cache).order.tolist() == expected
        build_stream(datasets[1], cache=cache)
        cache.report()
    (line,) = caplog.messages
    assert "2 data sets" in line
    assert "Set data_cache_dir to a writable folder" in line


def test_a_given_cache_folder_is_the_only_one(write_dataset, tmp_path):
    dataset = write_dataset("toy", make_documents(0))
    build_stream(dataset, cache_dir=tmp_path / "given")
    assert IndexCache(tmp_path / "given").folders(tmp_path / "toy") == [tmp_path / "given"]
    assert not cached_files(tmp_path)
    assert len(cached_files(tmp_path / "given")) == 1


def test_the_user_cache_is_in_the_home_folder_by_default(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = os.path.join(tmp_path, ".cache", "odm-neox")
    assert str(IndexCache().folders("data/toy")[1]) == expected


@pytest.mark.parametrize(("num_documents", "waits"), [(1499, False), (1500, True)])
def test_only_the_order_of_very_many_documents_waits_for_the_disk(
    write_dataset, tmp_path, monkeypatch, num_documents, waits
):
    flushed = []
    monkeypatch.setattr(files.os, "fsync", flushed.append)
    dataset = write_dataset("toy", make_documents(1, num_documents=num_documents))
    flushed.clear()
    build_stream(dataset)
    assert len(cached_files(tmp_path)) == 1
    assert bool(flushed) is waits


def test_the_checksum_of_a_long_order_is_computed_once(write_dataset, monkeypatch):
    dataset = write_dataset("toy", make_documents(0, num_documents=1600))
    expected = build_stream(dataset)

    def refuse(*arguments):
        raise AssertionError("the record of the first process is enough")

    monkeypatch.setattr(index_maps.zlib, "crc32", refuse)
    monkeypatch.setattr(index_cache, "zlib", SimpleNamespace(crc32=binascii.crc32))
    assert build_stream(dataset).order.tolist() == expected.order.tolist()


def test_a_long_order_that_changed_after_its_check_is_built_again(write_dataset, tmp_path, caplog):
    dataset = write_dataset("toy", make_documents(0, num_documents=1600))
    expected = build_stream(dataset).order.tolist()
    (file,) = cached_files(tmp_path)
    times = file.stat()
    with file.open("rb+") as stream:
        stream.seek(200)
        stream.write(b"\1\2\3")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # the inode's time tells
    assert build_stream(dataset).order.tolist() == expected
    assert "wrong checksum" in caplog.text
    caplog.clear()
    assert build_stream(dataset).order.tolist() == expected
    assert not caplog.text
