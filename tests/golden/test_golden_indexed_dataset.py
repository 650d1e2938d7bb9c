"""Bytes, orders and numbers that the research code wrote, reproduced exactly."""

import json
from pathlib import Path

import pytest

from megatron.data.data_utils import (
    get_normalized_weights_and_num_samples,
    get_train_valid_test_split_,
    weights_by_num_docs,
)
from megatron.data.indexed_dataset import MMapIndexedDataset, make_builder
from megatron.data.samplers import DistributedBatchSampler

GOLDEN_FILE = Path(__file__).resolve().parents[2] / "../shared/golden/indexed_dataset.json"
pytestmark = pytest.mark.skipif(
    not GOLDEN_FILE.exists(),
    reason="the golden values lie in the folder shared beside the checkout",
)


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN_FILE.read_text())


def build(case, prefix):
    with make_builder(f"{prefix}.bin", "mmap", case["vocab_size"]) as builder:
        for document in case["docs"]:
            builder.add_item(document)
            builder.end_document()
        builder.finalize(f"{prefix}.idx")


@pytest.mark.parametrize("name", ["mmap_uint16", "mmap_int32"])
def test_builder_writes_the_bytes_of_the_research_code(golden, name, tmp_path):
    case = golden[name]
    build(case, tmp_path / "toy")
    assert (tmp_path / "toy.bin").read_bytes().hex() == case["bin_hex"]
    assert (tmp_path / "toy.idx").read_bytes().hex() == case["idx_hex"]


@pytest.mark.parametrize("name", ["mmap_uint16", "mmap_int32"])
def test_reader_reads_the_bytes_of_the_research_code(golden, name, tmp_path):
    case = golden[name]
    (tmp_path / "toy.bin").write_bytes(bytes.fromhex(case["bin_hex"]))
    (tmp_path / "toy.idx").write_bytes(bytes.fromhex(case["idx_hex"]))
    dataset = MMapIndexedDataset(tmp_path / "toy")
    assert dataset.dtype.name == case["dtype"]
    assert [item.tolist() for item in dataset] == case["docs"]


def test_split_into_documents(golden):
    for case in golden["split"]:
        assert get_train_valid_test_split_(*case["args"]) == case["out"]


def test_normalized_weights_and_sample_counts(golden):
    for case in golden["normalized_weights_num_samples"]:
        weights, counts = get_normalized_weights_and_num_samples(*case["args"])
        assert weights == pytest.approx(case["out"][0], rel=1e-12)
        assert counts == case["out"][1]


def test_weights_by_number_of_documents(golden):
    for case in golden["weights_by_num_docs"]:
        assert weights_by_num_docs(*case["args"]) == pytest.approx(case["out"], rel=1e-12)


def test_distributed_batch_sampler(golden):
    case = golden["distributed_batch_sampler"]
    sampler = DistributedBatchSampler(
        range(case["n"]), case["global_batch"], True, case["rank"], case["world"]
    )
    assert len(sampler) == case["len"]
    assert list(sampler) == case["batches"]
    sampler.start_iter = 1
    assert list(sampler) == case["batches_start_iter_1"]
    assert sampler.start_iter == case["start_iter_after"]
