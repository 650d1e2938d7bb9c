import pytest

from megatron.data.indexed_dataset import MMapIndexedDataset, MMapIndexedDatasetBuilder


@pytest.fixture
def write_dataset(tmp_path):
    """Writes documents as ``<tmp_path>/<name>.{bin,idx}`` and opens them."""

    def write(name, documents, dtype="uint16"):
        prefix = tmp_path / name
        prefix.parent.mkdir(parents=True, exist_ok=True)
        with MMapIndexedDatasetBuilder(f"{prefix}.bin", dtype) as builder:
            for document in documents:
                builder.add_item(document)
                builder.end_document()
            builder.finalize(f"{prefix}.idx")
        return MMapIndexedDataset(prefix)

    return write
