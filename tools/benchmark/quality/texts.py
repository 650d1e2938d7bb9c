"""Texts that the benchmark makes: noise of known entropy, and counting, which a model soon masters.

Every document depends on (seed, number) alone, so a longer text begins with the shorter one.
"""

from __future__ import annotations

import base64
import itertools
import random
from collections.abc import Callable, Iterator, Sequence

__all__ = ["MAKERS", "WordList", "made_documents", "whole_words"]

BASE64_BYTES = 1500
"""Random bytes per document: 2,000 characters, without padding."""
WORDS_PER_DOCUMENT = 400
TERMS_PER_DOCUMENT = 120

WordList = Sequence[str]


def made_documents(kind: str, *, seed: int, split: str, words: WordList) -> Iterator[str]:
    """Yields documents without end.

    Args:
        kind: A key of `MAKERS`.
        seed: The seed of the suite.
        split: Held-out text is drawn apart from training text.
        words: What ``words`` draws from; see `whole_words`.
    """
    for number in itertools.count():
        yield MAKERS[kind](random.Random(f"{seed}/{split}/{kind}/{number}"), words)


def whole_words(encode: Callable[[str], Sequence[int]], tokens: Sequence[str]) -> list[str]:
    """Words of a vocabulary that become exactly one token each after a blank, sorted.

    A text of N such words, each with a blank before it, is N tokens, and if they are drawn
    uniformly, no model can have a smaller expected loss than ln(number of words) nats per token.

    Args:
        encode: Turns a text into token ids.
        tokens: Texts of the vocabulary's tokens.
    """
    candidates = {
        token[1:] for token in tokens if token[:1] == " " and token[1:].isascii() and len(token) > 2
    }
    alphabetic = sorted(word for word in candidates if word.isalpha())
    return [word for word in alphabetic if len(encode(f" {word}")) == 1]


def _base64(generator: random.Random, _words: WordList) -> str:
    return base64.b64encode(generator.randbytes(BASE64_BYTES)).decode("ascii")


def _words(generator: random.Random, words: WordList) -> str:
    return "".join(f" {generator.choice(words)}" for _ in range(WORDS_PER_DOCUMENT))


def _counting(generator: random.Random, _words: WordList) -> str:
    start, step = generator.randrange(10_000), generator.randrange(1, 4)
    terms = range(start, start + step * TERMS_PER_DOCUMENT, step)
    return f"Count from {start} in steps of {step}: {', '.join(map(str, terms))}."


MAKERS: dict[str, Callable[[random.Random, WordList], str]] = {
    "base64": _base64,
    "words": _words,
    "counting": _counting,
}
