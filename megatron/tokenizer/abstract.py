"""What every tokenizer offers, and the helpers that all of them share."""

import hashlib
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from megatron.tokenizer.errors import TokenizerError

END_OF_DOCUMENT = "<|endoftext|>"
PADDING = "<|padding|>"


@dataclass(frozen=True)
class Detokenizer:
    """Turns token ids into text; special tokens appear as written in the vocabulary."""

    decode: Callable[[list[int]], str]
    open_tokens: frozenset[int] = frozenset()
    """Ids whose text may still change as long as only such tokens follow, all of it and not just
    half a character at its end. A run of them has its final text where another token or the end
    comes."""

    def __call__(self, token_ids: Sequence[int]) -> str:
        return self.decode([int(index) for index in token_ids])


class AbstractTokenizer(ABC):
    """Maps text to token ids and back.

    Attributes:
        name: The `tokenizer_type` that builds it.
        vocab_size: Number of ids, special tokens included, without any padding.
        eod: Id that ends a document.
        pad: Id that fills up a sequence; the end-of-document id where there is none.
        fingerprint: SHA-256 in hex of what defines it: the vocabulary file (the concatenation of
            files where there are several). Datasets carry it, so that a mix-up is noticed.
    """

    def __init__(self, name: str, *, vocab_size: int, eod: int, pad: int, fingerprint: str):
        self.name = name
        self.vocab_size = vocab_size
        self.eod = eod
        self.pad = pad
        self.fingerprint = fingerprint

    @property
    def vocab(self) -> dict[str, int]:
        """Token string to id."""
        return self._read_vocab()

    @property
    def inv_vocab(self) -> dict[int, str]:
        """Id to token string."""
        return {index: token for token, index in self.vocab.items()}

    def tokenize(self, text: str) -> list[int]:
        """Returns the ids of a text, no special token added."""
        return self.tokenize_batch([text])[0]

    def tokenize_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text; the quickest way through many documents."""
        return self._encode_batch(list(texts))

    @cached_property
    def detokenize(self) -> Detokenizer:
        """Call it with ids to get their text."""
        return Detokenizer(self._decode, self._open_tokens())

    @abstractmethod
    def _read_vocab(self) -> dict[str, int]: ...

    @abstractmethod
    def _encode_batch(self, texts: list[str]) -> list[list[int]]: ...

    @abstractmethod
    def _decode(self, token_ids: list[int]) -> str: ...

    def _open_tokens(self) -> frozenset[int]:
        """See `Detokenizer`; none, where bytes that are no character do not change others."""
        return frozenset()


def import_library(module: str, tokenizer_type: str) -> Any:
    """Imports the library of a tokenizer when it is needed, or says how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise TokenizerError(
            f"tokenizer_type: {tokenizer_type} needs the package {module}, which is not installed; "
            f"pip install {module}"
        ) from error


def existing_file(
    path: str | None, tokenizer_type: str, *, wanted: str, key: str = "vocab_file"
) -> Path:
    """Returns the path of a file that a tokenizer needs.

    Raises:
        TokenizerError: No path is given or there is no such file.
    """
    if not path:
        raise TokenizerError(f"{key}: {tokenizer_type} needs {wanted}, but none is given; set it")
    if not Path(path).is_file():
        raise TokenizerError(f"{key}: no file {path}; {tokenizer_type} needs {wanted}")
    return Path(path)


def sha256_of(content: bytes) -> str:
    """Returns the SHA-256 of bytes in hex."""
    return hashlib.sha256(content).hexdigest()


def fingerprint_of(*paths: Path) -> str:
    """Returns the SHA-256 in hex of the content of files, one after the other."""
    return sha256_of(b"".join(path.read_bytes() for path in paths))
