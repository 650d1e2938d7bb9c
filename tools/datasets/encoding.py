"""Turns batches of documents into token ids."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from megatron.tokenizer.abstract import AbstractTokenizer
from megatron.tokenizer.errors import TokenizerError
from megatron.tokenizer.tokenizer import build_tokenizer

Batch = list[tuple[str, ...]]


@dataclass(frozen=True)
class EncoderSettings:
    """What an encoder needs to know; small, because it is sent to worker processes."""

    tokenizer_type: str
    vocab_file: str | None = None
    merge_file: str | None = None
    append_eod: bool = False
    tokenizer_adds_special_tokens: bool = False
    use_ftfy: bool = False


@dataclass(frozen=True)
class EncodedTexts:
    """The tokens of one key of a batch.

    Attributes:
        tokens: All tokens, one document after the other, shape (sum of lengths,), int32.
        lengths: Tokens of each document, shape (documents,), int64; no document is empty.
        text_bytes: UTF-8 bytes of these documents, as they were tokenized.
        num_empty: Documents of the batch that have no tokens and are left out.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    text_bytes: int
    num_empty: int


class Encoder:
    """Tokenizes batches of documents, each of which has one text per key."""

    def __init__(self, settings: EncoderSettings):
        self.tokenizer: AbstractTokenizer = build_tokenizer(settings)
        self._append_eod = settings.append_eod
        self._mend = _mending_function() if settings.use_ftfy else None

    def encode(self, batch: Batch) -> tuple[EncodedTexts, ...]:
        """Returns the tokens of each key; every key tokenizes its own text."""
        return tuple(self._encode_key(list(texts)) for texts in zip(*batch, strict=True))

    def _encode_key(self, texts: list[str]) -> EncodedTexts:
        if self._mend is not None:
            texts = [self._mend(text) for text in texts]
        kept: list[np.ndarray] = []
        text_bytes = 0
        eod = self.tokenizer.eod
        is_added = self.tokenizer.added.after[-1:] == (eod,)
        ending = [eod] if self._append_eod and not is_added else []
        for text, ids in zip(texts, self.tokenizer.tokenize_batch(texts), strict=True):
            if ids:  # an empty text, or one that the normalisation removed, is no document
                kept.append(np.asarray(ids + ending, dtype=np.int32))
                text_bytes += len(text.encode())
        return EncodedTexts(
            tokens=np.concatenate(kept) if kept else np.empty(0, dtype=np.int32),
            lengths=np.asarray([len(ids) for ids in kept], dtype=np.int64),
            text_bytes=text_bytes,
            num_empty=len(texts) - len(kept),
        )


def _mending_function() -> Callable[[str], str]:
    try:
        import ftfy
    except ImportError as error:
        raise TokenizerError("--ftfy needs the package ftfy; pip install ftfy") from error
    return ftfy.fix_text
