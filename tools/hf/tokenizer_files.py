"""The tokenizer of a run as the two files that AutoTokenizer reads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from megatron.files import write_json_atomic, write_text_atomic
from megatron.tokenizer import AbstractTokenizer

__all__ = ["TOKENIZER_CONFIG", "TOKENIZER_FILE", "token_ids", "write_tokenizer"]

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"


def token_ids(tokenizer: AbstractTokenizer) -> dict[str, int]:
    """The special tokens for config.json and generation_config.json.

    One token ends a document and stands before the first, as in training.
    """
    return {
        "bos_token_id": tokenizer.eod,
        "eos_token_id": tokenizer.eod,
        "pad_token_id": tokenizer.pad,
    }


def write_tokenizer(
    tokenizer: AbstractTokenizer, folder: Path, *, vocab_file: str | None, max_length: int
) -> bool:
    """Writes tokenizer.json and tokenizer_config.json.

    Args:
        tokenizer: The tokenizer of the run.
        folder: Where the files go.
        vocab_file: The tokenizer.json of an HFTokenizer: copied byte for byte, so that datasets
            made with it still know it by its checksum.
        max_length: Context of the model in tokens.

    Returns:
        False, and nothing is written, where the tokenizer does not run on the `tokenizers` library.
    """
    backend: Any = getattr(tokenizer, "tokenizer", None)
    if not hasattr(backend, "to_str") or not hasattr(backend, "token_to_id"):
        return False
    if tokenizer.name == "HFTokenizer" and vocab_file is not None:
        shutil.copyfile(vocab_file, folder / TOKENIZER_FILE)
    else:
        write_text_atomic(folder / TOKENIZER_FILE, backend.to_str(pretty=True))
    end = backend.id_to_token(tokenizer.eod)
    write_json_atomic(
        folder / TOKENIZER_CONFIG,
        {
            "tokenizer_class": "PreTrainedTokenizerFast",  # 4 and 5 take it; 5 writes another name
            "model_max_length": max_length,
            "bos_token": end,
            "eos_token": end,
            "pad_token": backend.id_to_token(tokenizer.pad),
            "clean_up_tokenization_spaces": False,
        },
    )
    return True
