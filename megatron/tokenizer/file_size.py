"""The number of tokens of a tokenizer, read from its file without building the tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["tokenizer_file_size"]

_LARGEST_FILE_BYTES = 32 * 1024 * 1024
_CHARACTER_LEVEL_SIZE = 512


def tokenizer_file_size(tokenizer_type: str | None, vocab_file: str | None) -> int | None:
    """Returns the vocabulary size, or None where no JSON file of moderate size tells it.

    What is wrong with a file is left to the tokenizer itself to say.
    """
    kind = str(tokenizer_type).lower()
    if kind == "charleveltokenizer":
        return _CHARACTER_LEVEL_SIZE
    path = Path(str(vocab_file))
    if kind not in ("hftokenizer", "gpt2bpetokenizer") or not vocab_file or not path.is_file():
        return None
    try:
        if path.stat().st_size > _LARGEST_FILE_BYTES:
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        ids = _ids(content) if kind == "hftokenizer" else list(content.values())
        return max(ids) + 1
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _ids(content: Mapping[str, Any]) -> list[int]:
    vocabulary = content["model"]["vocab"]
    # a unigram model lists its pieces, the others map them to ids
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else [len(vocabulary) - 1]
    return ids + [token["id"] for token in content.get("added_tokens") or []]
