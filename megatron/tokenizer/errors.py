"""The two errors that a user of the text side can cause."""

from megatron.errors import UserError


class TokenizerError(UserError):
    """A tokenizer cannot be built from what the user named; one line that says what to do."""


class DocumentError(UserError):
    """An input text cannot be read as asked; one line with the file and, where known, its line."""
