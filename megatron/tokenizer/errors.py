"""The two errors of text and tokenizers that a user can cause."""

from megatron.errors import UserError


class TokenizerError(UserError):
    """A tokenizer cannot be built from what the user named; the message tells what to do."""


class DocumentError(UserError):
    """An input text cannot be read as asked; one line with the file and, where known, its line."""
