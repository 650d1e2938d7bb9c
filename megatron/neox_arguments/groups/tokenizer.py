"""The tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class NeoXArgsTokenizer:
    """Kind of tokenizer; its files are `vocab_file` and `merge_file`."""

    tokenizer_type: Literal[
        "GPT2BPETokenizer",
        "HFTokenizer",
        "HFGPT2Tokenizer",
        "SPMTokenizer",
        "CharLevelTokenizer",
        "TiktokenTokenizer",
    ] = "GPT2BPETokenizer"
    """GPT2BPETokenizer reads vocab.json and merges.txt, HFTokenizer a tokenizer.json,
    HFGPT2Tokenizer a name or folder of transformers, SPMTokenizer a SentencePiece model,
    TiktokenTokenizer an encoding's name; CharLevelTokenizer needs no file: its tokens are bytes."""

    tokenizer_adds_special_tokens: bool = False
    """Adds to each text what the `post_processor` of the tokenizer.json adds in transformers, such
    as a begin-of-text token. Prepare the data with `--add-special-tokens` then. Prompts and
    contexts of tasks get what comes before a text; an export keeps the `post_processor`."""

    padded_vocab_size: int | None = None
    """Vocabulary with padding. Computed from the tokenizer; read only by `--dry-run` where there is
    no tokenizer to ask."""
