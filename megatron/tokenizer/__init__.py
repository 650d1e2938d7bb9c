"""Text to token ids and back."""

from megatron.tokenizer.errors import DocumentError, TokenizerError
from megatron.tokenizer.tokenizer import (
    TOKENIZER_TYPES,
    AbstractTokenizer,
    build_tokenizer,
    padded_vocab_size,
)

__all__ = [
    "AbstractTokenizer",
    "DocumentError",
    "TOKENIZER_TYPES",
    "TokenizerError",
    "build_tokenizer",
    "padded_vocab_size",
]
