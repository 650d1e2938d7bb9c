"""The tokenizer of a run as the two files that AutoTokenizer reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from megatron.files import write_json_atomic, write_text_atomic
from megatron.tokenizer import AbstractTokenizer

__all__ = [
    "GENERATION_CONFIG",
    "TOKENIZER_CONFIG",
    "TOKENIZER_FILE",
    "TOKENIZER_FILES",
    "copied_files",
    "token_ids",
    "write_tokenizer",
]

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_FILES = (
    TOKENIZER_FILE,
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.json",
    "chat_template.jinja",
)
"""What transformers may store of a tokenizer."""
GENERATION_CONFIG = "generation_config.json"
_ADDING = ("TemplateProcessing", "BertProcessing", "RobertaProcessing")


def copied_files(folder: Path) -> list[Path]:
    """The files of a tokenizer and of generation that there are in a model folder."""
    names = (*TOKENIZER_FILES, GENERATION_CONFIG)
    return [folder / name for name in names if (folder / name).is_file()]


def token_ids(tokenizer: AbstractTokenizer, pad: int | None = None) -> dict[str, int]:
    """The special tokens for config.json and generation_config.json.

    One token ends a document and also precedes the first one, as in training, unless another token
    is added before each text.

    Args:
        tokenizer: The tokenizer of the run.
        pad: Id that fills up a text, instead of the tokenizer's.
    """
    return {
        "bos_token_id": _first_token(tokenizer),
        "eos_token_id": tokenizer.eod,
        "pad_token_id": tokenizer.pad if pad is None else pad,
    }


def write_tokenizer(
    tokenizer: AbstractTokenizer,
    folder: Path,
    *,
    vocab_file: str | None,
    max_length: int,
    pad: int | None = None,
) -> bool:
    """Writes tokenizer.json and tokenizer_config.json, with which texts get the ids of training.

    Tokens that transformers would add to each text are removed from the tokenizer.json unless
    training adds them too.

    Args:
        tokenizer: The tokenizer of the run.
        folder: Where the files go.
        vocab_file: The tokenizer.json of an HFTokenizer: copied byte for byte where nothing is
            taken out, so that datasets made with it still know it by its checksum.
        max_length: Context of the model in tokens.
        pad: Id that fills up a text, instead of the tokenizer's.

    Returns:
        False, and nothing is written, if the tokenizer does not use the `tokenizers` library.
    """
    backend: Any = getattr(tokenizer, "tokenizer", None)
    if not hasattr(backend, "to_str") or not hasattr(backend, "token_to_id"):
        return False
    if tokenizer.own_added and not tokenizer.added:
        content = json.loads(backend.to_str())
        content["post_processor"] = _without_added(content["post_processor"])
        write_text_atomic(
            folder / TOKENIZER_FILE, json.dumps(content, ensure_ascii=False, indent=2)
        )
    elif tokenizer.name == "HFTokenizer" and vocab_file is not None:
        shutil.copyfile(vocab_file, folder / TOKENIZER_FILE)
    else:
        write_text_atomic(folder / TOKENIZER_FILE, backend.to_str(pretty=True))
    end = backend.id_to_token(tokenizer.eod)
    write_json_atomic(
        folder / TOKENIZER_CONFIG,
        {
            "tokenizer_class": "PreTrainedTokenizerFast",  # 4 and 5 take it; 5 writes another name
            "model_max_length": max_length,
            "bos_token": backend.id_to_token(_first_token(tokenizer)),
            "eos_token": end,
            "pad_token": backend.id_to_token(tokenizer.pad if pad is None else pad),
            "clean_up_tokenization_spaces": False,
            "add_bos_token": bool(tokenizer.added.before),  # of programs that do not read the file
            "add_eos_token": bool(tokenizer.added.after),
        },
    )
    return True


def _first_token(tokenizer: AbstractTokenizer) -> int:
    return next(iter(tokenizer.added.before), tokenizer.eod)


def _without_added(post_processor: dict[str, Any]) -> dict[str, Any] | None:
    """A post-processor without the parts that add tokens; None if no part is left."""
    if post_processor["type"] == "Sequence":
        parts = [_without_added(part) for part in post_processor["processors"]]
        kept = [part for part in parts if part is not None]
        return {**post_processor, "processors": kept} if kept else None
    return None if post_processor["type"] in _ADDING else post_processor
