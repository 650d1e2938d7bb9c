"""Facts about a tokenized data set: ``<prefix>.meta.json`` beside the data.

The two data files contain only token ids. Bits per byte needs the length of the text, and a wrong
tokenizer is found before the first step only if the sidecar names the one that made the ids.
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron.data.errors import DataError
from megatron.files import atomic_writer
from odm.json_data import SchemaError, anything, fields, integer, optional, read_json, refuse, text
from odm.wording import shown

SCHEMA_VERSION = 1

_RECORD = fields(
    {
        "schema": anything,
        "documents": integer(0),
        "tokens": integer(0),
        "text_bytes": integer(0),
        "max_token_id": integer(-1),
        "tokenizer": fields(
            {"type": text(), "vocab_size": integer(1)},
            {"sha256": optional(text("[0-9a-f]{64}", must="64 hexadecimal digits"))},
            closed=True,
        ),
    },
    closed=True,
)


@dataclasses.dataclass(frozen=True)
class TokenizerIdentity:
    """Which tokenizer made the ids."""

    type: str
    """Name as in ``tokenizer_type``, for example ``HFTokenizer``."""
    vocab_size: int
    """Number of ids without padding."""
    sha256: str | None = None
    """Digest of the vocabulary file, hexadecimal; None for a tokenizer without a file."""


@dataclasses.dataclass(frozen=True)
class DatasetMetadata:
    """Totals of one data set and the tokenizer that made it."""

    documents: int
    tokens: int
    """Token ids in the ``.bin`` file, end-of-document tokens included."""
    text_bytes: int
    """UTF-8 bytes of the text before tokenizing."""
    max_token_id: int
    """Largest id in the file; -1 where there are no tokens."""
    tokenizer: TokenizerIdentity


def metadata_path(prefix: str | Path) -> Path:
    """Returns the path of the sidecar of a data set."""
    return Path(f"{prefix}.meta.json")


def write_metadata(prefix: str | Path, metadata: DatasetMetadata) -> Path:
    """Writes the sidecar of ``prefix`` atomically and returns its path."""
    path = metadata_path(prefix)
    record = {"schema": SCHEMA_VERSION, **dataclasses.asdict(metadata)}
    with atomic_writer(path) as stream:
        stream.write((json.dumps(record, indent=2) + "\n").encode("utf-8"))
    return path


def read_metadata(prefix: str | Path) -> DatasetMetadata | None:
    """Reads the sidecar of ``prefix``.

    Returns:
        None if there is no sidecar: data sets of other programs have none.

    Raises:
        DataError: If the sidecar exists but this version cannot read it.
    """
    path = metadata_path(prefix)
    if not os.path.exists(path):  # nor one whose name is too long, unlike Path.exists
        return None
    record = read_json(
        path,
        _check_record,
        error=DataError,
        what="data set description",
        advice="tokenize the text again or remove the file",
    )
    del record["schema"]
    return DatasetMetadata(**{**record, "tokenizer": TokenizerIdentity(**record["tokenizer"])})


def _check_record(record: Any, where: str) -> None:
    fields({"schema": anything})(record, where)
    schema = record["schema"]
    if type(schema) is not int or schema != SCHEMA_VERSION:
        raise SchemaError(f"schema {shown(schema)}, this version reads {SCHEMA_VERSION}")
    _RECORD(record, where)
    if (record["max_token_id"] < 0) != (record["tokens"] == 0):
        must = "-1 where there are no tokens, and there alone"
        refuse("max_token_id", must, record["max_token_id"])


def merge_metadata(parts: Sequence[DatasetMetadata | None]) -> DatasetMetadata | None:
    """Describes the concatenation of data sets.

    Returns:
        Sums of the counts and the largest token id; None if any part is undescribed.

    Raises:
        DataError: If two parts were made by different tokenizers.
    """
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    for part in known[1:]:
        if part.tokenizer != known[0].tokenizer:
            raise DataError(
                f"cannot merge data of different tokenizers: {known[0].tokenizer} and "
                f"{part.tokenizer}; tokenize both texts with one tokenizer"
            )
    return DatasetMetadata(
        documents=sum(part.documents for part in known),
        tokens=sum(part.tokens for part in known),
        text_bytes=sum(part.text_bytes for part in known),
        max_token_id=max(part.max_token_id for part in known),
        tokenizer=known[0].tokenizer,
    )
