"""Bytes, orders and numbers that the research code wrote, reproduced exactly."""

import json
from pathlib import Path

import pytest

from megatron.data.indexed_dataset import MMapIndexedDataset, make_builder
from megatron.data.shares import weights_by_num_docs
from tests.unit.data.test_data_utils import boundaries_of

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
        assert boundaries_of(*case["args"]) == case["out"]


def test_weights_by_number_of_documents(golden):
    for case in golden["weights_by_num_docs"]:
        assert weights_by_num_docs(*case["args"]) == pytest.approx(case["out"], rel=1e-12)
