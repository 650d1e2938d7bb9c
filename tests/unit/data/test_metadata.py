import dataclasses
import json

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
    assert read_metadata(tmp_path / ("n" * 250)) is None  # the sidecar's name would be too long


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "64 levels"),
        ("[]", "must be an object"),
        ('{"schema": 1}', "lacks documents, tokens"),
        ('{"schema": 2}', "schema 2, this version reads 1"),
        ('{"schema": true}', "schema True, this version reads 1"),
        ('{"schema": 1, "tokenizer": {}, "tokens": 1}', "lacks documents"),
    ],
)
def test_a_damaged_sidecar_is_named(tmp_path, text, message):
    (tmp_path / "toy.meta.json").write_text(text)
    with pytest.raises(DataError, match=rf"toy\.meta\.json: .*{message}"):
        read_metadata(tmp_path / "toy")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_token_id", None, "max_token_id: .*got None"),
        ("max_token_id", -1, "max_token_id: .*no tokens, .*got -1"),
        ("max_token_id", -2, "max_token_id: .*from -1 .*got -2"),
        ("tokens", 0, "max_token_id: .*no tokens, .*got 7999"),
        ("tokens", "10", "tokens: .*got '10'"),
        ("tokens", 1e3, r"tokens: .*got 1000\.0"),
        ("documents", True, "documents: .*got True"),
        ("text_bytes", -5, "text_bytes: .*got -5"),
        ("text_bytes", 10**30, "text_bytes: must be a whole number"),
        ("tokenizer", "HF", "tokenizer: must be an object"),
        ("tokenizer", {"type": 5, "vocab_size": 9}, r"tokenizer\.type: .*got 5"),
        ("tokenizer", {"type": "x", "vocab_size": None}, r"tokenizer\.vocab_size: .*got None"),
        ("tokenizer", {"type": "x"}, r"lacks tokenizer\.vocab_size"),
        ("tokenizer", {"type": "x", "vocab_size": 9, "sha256": 5}, r"tokenizer\.sha256: .*got 5"),
        ("more", 1, "'more': not a field"),
    ],
)
def test_a_wrong_field_of_a_sidecar_is_named_with_its_value(tmp_path, field, value, message):
    path = write_metadata(tmp_path / "toy", METADATA)
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
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
