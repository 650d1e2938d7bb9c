import os
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron.data.errors import DataError
from megatron.data.index_header import stored_tokens
from megatron.data.indexed_dataset import (
    MMapIndexedDataset,
    MMapIndexedDatasetBuilder,
    best_fitting_dtype,
    make_builder,
    make_dataset,
)

DOCUMENTS = [[1, 2, 3], [4], [5, 6]]


@settings(max_examples=40)
@given(
    documents=st.lists(st.lists(st.integers(0, 255), max_size=6), max_size=8),
    dtype=st.sampled_from(["u1", "i2", "u2", "i4", "i8", "f4", "f8"]),
)
def test_what_was_written_is_read(documents, dtype, tmp_path_factory):
    prefix = tmp_path_factory.mktemp("data") / "toy"
    with MMapIndexedDatasetBuilder(f"{prefix}.bin", dtype) as builder:
        for document in documents:
            builder.add_item(document)
            builder.end_document()
        builder.finalize(f"{prefix}.idx")
    dataset = MMapIndexedDataset(prefix)
    assert [item.tolist() for item in dataset] == documents
    assert dataset.sizes.tolist() == [len(document) for document in documents]
    assert dataset.doc_idx.tolist() == list(range(len(documents) + 1))
    assert dataset.dtype == np.dtype(dtype)


def test_parts_of_items_and_slices(write_dataset):
    dataset = write_dataset("toy", DOCUMENTS)
    assert dataset.get(0, offset=1).tolist() == [2, 3]
    assert dataset.get(0, 1, 1).tolist() == [2]
    assert dataset[-1].tolist() == [5, 6]
    assert [item.tolist() for item in dataset[::2]] == [[1, 2, 3], [5, 6]]


@pytest.mark.parametrize("arguments", [(3,), (-4,), (0, 2, 2), (0, 4), (0, -1)])
def test_reading_what_is_not_there_is_an_index_error(write_dataset, arguments):
    with pytest.raises(IndexError):
        write_dataset("toy", DOCUMENTS).get(*arguments)


def test_a_tensor_is_an_item_and_documents_may_have_several_items(tmp_path):
    with make_builder(tmp_path / "toy.bin", "mmap", vocab_size=100) as builder:
        builder.add_item(torch.tensor([1, 2]))
        builder.add_item([3])
        builder.end_document()
        builder.end_document()
        builder.finalize(tmp_path / "toy.idx")
    dataset = make_dataset(tmp_path / "toy", "infer", skip_warmup=False)
    assert [item.tolist() for item in dataset] == [[1, 2], [3]]
    assert dataset.doc_idx.tolist() == [0, 2, 2]


def test_a_pickled_dataset_maps_its_files_again(write_dataset):
    dataset = pickle.loads(pickle.dumps(write_dataset("toy", DOCUMENTS)))
    assert [item.tolist() for item in dataset] == DOCUMENTS


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(None, np.int32), (65499, np.uint16), (65500, np.int32)]
)
def test_token_type_follows_the_vocabulary(vocab_size, dtype):
    assert best_fitting_dtype(vocab_size) is dtype


@pytest.mark.parametrize("item", [[65536], [-1], [1.5]])
def test_a_token_that_would_change_on_disk_is_refused(tmp_path, item):
    with (
        MMapIndexedDatasetBuilder(tmp_path / "toy.bin", np.uint16) as builder,
        pytest.raises(DataError, match="does not fit uint16"),
    ):
        builder.add_item(item)


def build_and_fail(prefix):
    with make_builder(f"{prefix}.bin") as builder:
        builder.add_item([1, 2])
        raise RuntimeError("tokenizer")


def test_a_failed_build_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="tokenizer"):
        build_and_fail(tmp_path / "toy")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("function", ["write_index", "flush_to_disk"])
def test_a_full_disk_while_finalizing_leaves_the_old_dataset(
    write_dataset, tmp_path, monkeypatch, function
):
    write_dataset("toy", DOCUMENTS)

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"megatron.data.indexed_dataset.{function}", fail)
    builder = make_builder(tmp_path / "toy.bin")
    builder.add_item([9])
    with pytest.raises(OSError, match="No space left"):
        builder.finalize(tmp_path / "toy.idx")
    assert [item.tolist() for item in MMapIndexedDataset(tmp_path / "toy")] == DOCUMENTS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy.bin", "toy.idx"]


def test_an_interrupt_between_the_two_names_leaves_no_half(write_dataset, tmp_path, monkeypatch):
    write_dataset("toy", DOCUMENTS)
    builder = make_builder(tmp_path / "toy.bin")
    builder.add_item([9])
    replace = os.replace

    def replace_and_stop(source, target):
        replace(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", replace_and_stop)
    with pytest.raises(KeyboardInterrupt):
        builder.finalize(tmp_path / "toy.idx")
    assert list(tmp_path.iterdir()) == []


def test_nothing_has_its_name_before_finalize(tmp_path):
    with make_builder(tmp_path / "toy.bin") as builder:
        builder.add_item([1])
        assert not MMapIndexedDataset.exists(tmp_path / "toy")
        builder.finalize(tmp_path / "toy.idx")
    assert MMapIndexedDataset.exists(tmp_path / "toy")


def damage(path, change):
    path.write_bytes(change(bytearray(path.read_bytes())))


def set_bytes(position, value):
    def change(content):
        content[position : position + len(value)] = value
        return content

    return change


@pytest.mark.parametrize(
    ("suffix", "change", "message"),
    [
        (
            ".bin",
            lambda c: c[:-2],
            "12 bytes for 6 tokens of uint16, found 10; .* truncated",
        ),
        (".bin", lambda c: c + b"xx", "12 bytes for 6 .*, found 14; .* longer than its index"),
        (".idx", lambda c: c[:-1], "102 bytes for 3 items and 4 document indices, found 101"),
        (".idx", lambda c: c + b"x", "102 bytes .*, found 103"),
        (".idx", lambda c: c[:20], "header needs 34 bytes, found 20; .* truncated"),
        (".idx", lambda c: b"PK\x03\x04" + c, "not an index of tokenized data"),
        (".idx", lambda c: b"", "not an index of tokenized data"),
        (".idx", lambda c: b"TNTIDX\0\0" + c, "legacy TNTIDX .* --dataset-impl mmap"),
        (".idx", set_bytes(9, b"\x02"), "version 2, only version 1"),
        (".idx", set_bytes(17, b"\x09"), "unknown dtype code 9"),
        (".idx", set_bytes(17, b"\x04"), "24 bytes for 6 tokens of int32, found 12"),
        (".idx", set_bytes(34, struct.pack("<i", -3)), "item 0 has a negative size, -3"),
        (".idx", set_bytes(34, struct.pack("<2i", 1, 3)), "item 1 points to byte 6, .* byte 2;"),
        (".idx", set_bytes(54, struct.pack("<q", 600)), "item 1 points to byte 600"),
    ],
)
def test_damage_is_named_when_the_dataset_is_opened(
    write_dataset, tmp_path, suffix, change, message
):
    write_dataset("toy", DOCUMENTS)
    damage(tmp_path / f"toy{suffix}", change)
    with pytest.raises(DataError, match=message) as caught:
        MMapIndexedDataset(tmp_path / "toy")
    assert str(tmp_path / "toy") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "dtype"), [(None, "u2"), (None, "i4"), (6, "f4"), (6, "f8"), (7, "f4"), (7, "f8")]
)
@pytest.mark.parametrize("documents", [[[1]], DOCUMENTS, [[1, 2], [3, 4, 5, 6, 7]], []])
def test_a_glance_at_the_header_counts_the_tokens(write_dataset, tmp_path, documents, code, dtype):
    write_dataset("toy", documents, dtype)
    if code is not None:
        damage(tmp_path / "toy.idx", set_bytes(17, bytes([code])))
    assert stored_tokens(tmp_path / "toy") == sum(map(len, documents))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c[:-1], "must have 12 bytes for 3 items, found 11; the file is truncated"),
        (lambda c: c + b"x", "must have 12 bytes for 3 items, found 13; the file is longer"),
    ],
)
def test_a_glance_sees_tokens_that_are_missing_or_too_many(
    write_dataset, tmp_path, change, message
):
    write_dataset("toy", DOCUMENTS)
    damage(tmp_path / "toy.bin", change)
    with pytest.raises(DataError, match=rf"toy\.bin: {message}"):
        stored_tokens(tmp_path / "toy")


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_a_missing_file_is_named(write_dataset, tmp_path, suffix):
    write_dataset("toy", DOCUMENTS)
    (tmp_path / f"toy{suffix}").unlink()
    with pytest.raises(DataError, match=f"toy{suffix}: no such file"):
        make_dataset(tmp_path / "toy")


@pytest.mark.parametrize(("code", "dtype"), [(6, "f8"), (7, "f4")])
def test_float_files_of_megatron_lm_are_read_by_their_length(write_dataset, tmp_path, code, dtype):
    write_dataset("toy", [[0.5, 1.5], [2.5]], dtype)
    damage(tmp_path / "toy.idx", set_bytes(17, bytes([code])))
    assert MMapIndexedDataset(tmp_path / "toy")[0].tolist() == [0.5, 1.5]


def test_a_document_index_that_other_programs_merged_is_repaired(write_dataset, tmp_path, caplog):
    write_dataset("toy", DOCUMENTS)
    damage(tmp_path / "toy.idx", lambda c: c[:26] + struct.pack("<Q", 2) + c[34:-16])
    assert MMapIndexedDataset(tmp_path / "toy").doc_idx.tolist() == [0, 1, 2, 3]
    assert "document index does not cover the 3 items" in caplog.text


def test_merging_is_concatenation_with_documents(write_dataset, tmp_path):
    write_dataset("a", [[1, 2], [3]])
    write_dataset("b", [[], [4, 5]])
    with MMapIndexedDatasetBuilder(tmp_path / "c.bin", np.uint16) as builder:
        builder.add_item([9])
        builder.end_document()
        builder.merge_file_(tmp_path / "a")
        builder.merge_file_(tmp_path / "b")
        builder.finalize(tmp_path / "c.idx")
    write_dataset("whole", [[9], [1, 2], [3], [], [4, 5]])
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"c{suffix}").read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()
    assert (builder.num_tokens, builder.max_token_id, builder.num_documents) == (6, 9, 5)


def test_merging_another_token_type_is_refused(write_dataset, tmp_path):
    write_dataset("a", [[1]], "i4")
    with (
        MMapIndexedDatasetBuilder(tmp_path / "c.bin", np.uint16) as builder,
        pytest.raises(DataError, match="stores int32"),
    ):
        builder.merge_file_(tmp_path / "a")


def test_reading_and_writing_need_no_torch():
    code = "import sys, megatron.data.indexed_dataset; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_implementations_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"'lazy' .*; use mmap"):
        make_builder(tmp_path / "toy.bin", "lazy")
    with pytest.raises(DataError, match="data_impl: 'parquet' is unknown"):
        make_dataset(tmp_path / "toy", "parquet")
    with pytest.raises(DataError, match="cannot store tokens as complex64"):
        MMapIndexedDatasetBuilder(tmp_path / "toy.bin", np.complex64)
