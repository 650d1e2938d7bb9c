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
    """Ids whose whole text may still change (not just half a character at its end) as long as only
    such tokens follow. A run of them has its final text when another token or the end comes."""

    def __call__(self, token_ids: Sequence[int]) -> str:
        return self.decode([int(index) for index in token_ids])


@dataclass(frozen=True)
class AddedTokens:
    """What the post-processor of a `tokenizer.json` adds to a text, such as ``<s>``."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.before or self.after)


class AbstractTokenizer(ABC):
    """Maps text to token ids and back.

    Attributes:
        name: The `tokenizer_type` that builds it.
        vocab_size: Number of ids, special tokens included, without any padding.
        eod: Id that ends a document.
        pad: Id that fills up a sequence; the end-of-document id where there is none.
        fingerprint: SHA-256 in hex of what defines it: the vocabulary file (the concatenation of
            files where there are several). Datasets carry it, so that a mix-up is noticed.
        own_added: What transformers adds to each text with this tokenizer; see `add_own_tokens`.
        added: What is added here, in training and wherever the model is used; nothing by default.
    """

    own_added = AddedTokens()
    added = AddedTokens()

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

    def add_own_tokens(self) -> None:
        """Adds to each text what transformers adds, from now on; such datasets are different.

        Raises:
            TokenizerError: If transformers adds nothing.
        """
        if not self.own_added:
            raise TokenizerError(
                f"tokenizer_adds_special_tokens: is true, but this {self.name} adds no tokens; "
                "remove the key, or use a tokenizer.json whose post_processor adds them"
            )
        self.added = self.own_added
        self.fingerprint = sha256_of(f"{self.fingerprint} with special tokens".encode())

    def describe_own_added(self) -> str:
        """What transformers adds to each text, such as ``'<s>' before``; empty if nothing."""
        names = self.inv_vocab if self.own_added else {}
        parts = (
            (self.own_added.before, "before"),
            (self.own_added.after, "after"),
        )
        return " and ".join(
            f"{' '.join(repr(names[index]) for index in tokens)} {place}"
            for tokens, place in parts
            if tokens
        )

    def tokenize(self, text: str) -> list[int]:
        """Returns the ids that a text has as a document of the training data."""
        return self.tokenize_batch([text])[0]

    def tokenize_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text; the fastest way to encode many documents.

        Nothing is added to a text without tokens.
        """
        encoded = self._encode_batch(list(texts))
        if not self.added:
            return encoded
        before, after = self.added.before, self.added.after
        return [[*before, *ids, *after] if ids else ids for ids in encoded]

    def tokenize_prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of texts that will be continued: no token is added after them.

        Tokens are not added before a text that already begins with them.
        """
        before = list(self.added.before)
        encoded = self._encode_batch(list(texts))
        return [ids if ids[: len(before)] == before else before + ids for ids in encoded]

    @cached_property
    def detokenize(self) -> Detokenizer:
        """Function from ids to their text."""
        return Detokenizer(self._decode, self._open_tokens())

    @abstractmethod
    def _read_vocab(self) -> dict[str, int]: ...

    @abstractmethod
    def _encode_batch(self, texts: list[str]) -> list[list[int]]: ...

    @abstractmethod
    def _decode(self, token_ids: list[int]) -> str: ...

    def _open_tokens(self) -> frozenset[int]:
        """See `Detokenizer`; empty if bytes that are not a character do not change others."""
        return frozenset()


def import_library(module: str, tokenizer_type: str) -> Any:
    """Imports the library of a tokenizer when it is needed; the error tells how to install it."""
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
