"""The two errors of text and tokenizers that a user can cause."""


class TokenizerError(ValueError):
    """A tokenizer cannot be built from what the user named; the message tells what to do."""


class DocumentError(ValueError):
    """An input text cannot be read as asked; one line with the file and, where known, its line."""
