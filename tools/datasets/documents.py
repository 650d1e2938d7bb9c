"""The document reader under the name that tools use; it lives beside the tokenizers."""

from megatron.tokenizer.documents import Document, DocumentReader
from megatron.tokenizer.errors import DocumentError

__all__ = ["Document", "DocumentError", "DocumentReader"]
