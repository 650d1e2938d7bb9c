import dataclasses

import pytest

from megatron.data.errors import DataError
from megatron.data.metadata import (
    DatasetMetadata,
    TokenizerIdentity,
    merge_metadata,
    read_metadata,
    write_metadata,
)

TOKENIZER = TokenizerIdentity("HFTokenizer", 8000, "ab" * 32)
METADATA = DatasetMetadata(
    documents=2, tokens=10, text_bytes=37, max_token_id=7999, tokenizer=TOKENIZER
)


def test_metadata_survive_the_disk(tmp_path):
    path = write_metadata(tmp_path / "toy", METADATA)
    assert path == tmp_path / "toy.meta.json"
    assert read_metadata(tmp_path / "toy") == METADATA
    assert list(tmp_path.iterdir()) == [path]


def test_data_without_a_sidecar_have_no_metadata(tmp_path):
    assert read_metadata(tmp_path / "toy") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a data set description"),
        ("[]", "not a data set description"),
        ('{"schema": 1}', "not a data set description"),
        ('{"schema": 2}', "schema 2, this version reads 1"),
        ('{"schema": 1, "tokenizer": {}, "tokens": 1}', "not a data set description"),
    ],
)
def test_a_damaged_sidecar_is_named(tmp_path, text, message):
    (tmp_path / "toy.meta.json").write_text(text)
    with pytest.raises(DataError, match=rf"toy\.meta\.json: .*{message}"):
        read_metadata(tmp_path / "toy")


def test_merging_adds_counts_and_keeps_the_largest_id():
    small = dataclasses.replace(METADATA, documents=1, tokens=1, text_bytes=3, max_token_id=5)
    assert merge_metadata([METADATA, small]) == DatasetMetadata(
        documents=3, tokens=11, text_bytes=40, max_token_id=7999, tokenizer=TOKENIZER
    )


def test_merging_with_undescribed_data_gives_no_metadata():
    assert merge_metadata([METADATA, None]) is None
    assert merge_metadata([]) is None


def test_data_of_two_tokenizers_are_not_merged():
    other = dataclasses.replace(METADATA, tokenizer=dataclasses.replace(TOKENIZER, sha256=None))
    with pytest.raises(DataError, match="different tokenizers"):
        merge_metadata([METADATA, other])
