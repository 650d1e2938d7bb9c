"""Random numbers that can be drawn from any place of their sequence: a counter-based generator.

Number i of a sequence is a function of (seed, name, i) alone, as in Salmon et al. 2011, "Parallel
random numbers: as easy as 1, 2, 3". So each rank draws the part of a parameter that it has, in any
order and with any number of threads, and all layouts get the same values.

The counter is scrambled twice by a permutation of 32-bit words with two multiplications (constants
of the hash `lowbias32` by C. Wellons), each time after a key of the sequence was added. Two words
make two normal numbers (Box and Muller 1958), or two uniform ones. numpy computes them word by
word, so a value does not depend on the length of the array that it is in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from megatron.model.shard_blocks import Rectangle

__all__ = ["NumberStream"]

_CHUNK = 1 << 15
"""Numbers that are computed together: their buffers stay in the cache of a core."""
_PARALLEL_FROM = 1 << 20
_WORD_BITS = 32
_WORD_MASK = (1 << _WORD_BITS) - 1

Combine = Callable[[np.ndarray, np.ndarray, np.ndarray], None]
"""Writes pairs of numbers (r, p, 2) from two words (r, p) of each pair, which it may overwrite."""


class NumberStream:
    """The random numbers of one parameter.

    Args:
        seed: Seed of the run.
        name: Name of the parameter.
    """

    def __init__(self, seed: int, name: str):
        self._origin = f"{seed}:{name}"
        self._made: dict[Any, Any] = {}

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """Returns ``make()``, which is computed only at the first call with this key."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def uniform(self, part: Rectangle) -> np.ndarray:
        """Numbers in [0, 1) of the elements of a matrix, (rows, columns) float32."""
        return self._fill(part, _uniform_pairs)

    def normal(self, part: Rectangle) -> np.ndarray:
        """Standard normal numbers of the elements of a matrix, (rows, columns) float32."""
        return self._fill(part, _normal_pairs)

    def _fill(self, part: Rectangle, combine: Combine) -> np.ndarray:
        result = np.empty((part.num_rows, part.num_columns), dtype=np.float32)
        for word in (0, 1):  # before threads ask for them
            for high in range(part.start >> 33, (part.end >> 33) + 1):
                self._keys(word, high)

        def work(chunk: tuple[np.ndarray, int]) -> None:
            self._fill_chunk(*chunk, part.row_length, combine)

        chunks = _chunks(part, result)
        num_threads = torch.get_num_threads() if result.size >= _PARALLEL_FROM else 1
        if num_threads == 1:
            for chunk in chunks:
                work(chunk)
        else:
            with ThreadPoolExecutor(num_threads) as pool:
                list(pool.map(work, chunks))
        return result

    def _fill_chunk(self, out: np.ndarray, start: int, row_length: int, combine: Combine) -> None:
        """Writes the numbers from ``start`` on; pair p has the numbers 2 p and 2 p + 1."""
        skipped = start & 1
        num_pairs = (skipped + out.shape[1] + 1) // 2
        first_pairs = (np.arange(len(out), dtype=np.int64) * row_length + start) >> 1
        counters = np.add.outer(
            (first_pairs & _WORD_MASK).astype(np.uint32), np.arange(num_pairs, dtype=np.uint32)
        )
        high = start >> (1 + _WORD_BITS)
        words = [self._words(word, counters, high) for word in (0, 1)]
        pairs = np.empty((len(out), num_pairs, 2), dtype=np.float32)
        combine(words[0], words[1], pairs)
        out[...] = pairs.reshape(len(out), -1)[:, skipped : skipped + out.shape[1]]

    def _words(self, word: int, counters: np.ndarray, high: int) -> np.ndarray:
        first, second = self._keys(word, high)
        words = counters + first
        scratch = np.empty_like(words)
        _scramble(words, scratch)
        np.add(words, second, out=words)
        _scramble(words, scratch)
        return words

    def _keys(self, word: int, high: int) -> np.ndarray:
        """Two keys of the first or second word of pairs, by the upper bits of their counters."""

        def make() -> np.ndarray:
            digest = hashlib.sha256(f"{word}:{high}:{self._origin}".encode()).digest()
            return np.frombuffer(digest[:8], dtype="<u4")

        keys: np.ndarray = self.once((word, high), make)
        return keys


def _uniform_pairs(first: np.ndarray, second: np.ndarray, pairs: np.ndarray) -> None:
    pairs[..., 0] = _to_unit(first)
    pairs[..., 1] = _to_unit(second)


def _normal_pairs(first: np.ndarray, second: np.ndarray, pairs: np.ndarray) -> None:
    np.right_shift(first, np.uint32(1), out=first)
    radius = first.view(np.int32).astype(np.float32)
    radius += np.float32(0.5)  # never 0, whose logarithm is infinite
    radius *= np.float32(2.0**-31)
    np.log(radius, out=radius)
    radius *= np.float32(-2.0)
    np.sqrt(radius, out=radius)
    angle = _to_unit(second)
    angle *= np.float32(2.0 * np.pi)
    part = np.cos(angle)
    np.multiply(part, radius, out=pairs[..., 0])
    np.sin(angle, out=part)
    np.multiply(part, radius, out=pairs[..., 1])


def _scramble(words: np.ndarray, scratch: np.ndarray) -> None:
    """A permutation of the 32-bit words, in place."""
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97), (15, None)):
        np.right_shift(words, np.uint32(shift), out=scratch)
        np.bitwise_xor(words, scratch, out=words)
        if factor is not None:
            np.multiply(words, np.uint32(factor), out=words)


def _to_unit(words: np.ndarray) -> np.ndarray:
    """The upper 24 bits, all that a float32 holds, as numbers in [0, 1)."""
    np.right_shift(words, np.uint32(8), out=words)
    numbers = words.view(np.int32).astype(np.float32)
    numbers *= np.float32(2.0**-24)
    return numbers


def _chunks(part: Rectangle, result: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """Pieces of ``result`` (r, c), each with the number of its first element.

    All rows of a piece begin with the same member of a pair, and the counters of its pairs differ
    only in their lower 32 bits.
    """
    columns = min(part.num_columns, _CHUNK)
    rows = 1 if part.row_length % 2 else max(1, _CHUNK // part.num_columns)
    for row in range(0, part.num_rows, rows):
        for column in range(0, part.num_columns, columns):
            out = result[row : row + rows, column : column + columns]
            start = part.start + row * part.row_length + column
            yield from _cut_at_words(out, start, part.row_length)


def _cut_at_words(out: np.ndarray, start: int, row_length: int) -> Iterator[tuple[np.ndarray, int]]:
    numbers_per_key = 1 << (1 + _WORD_BITS)
    last = start + (len(out) - 1) * row_length + out.shape[1] - 1
    if start // numbers_per_key == last // numbers_per_key:
        yield out, start
    elif len(out) > 1:
        for row in range(len(out)):
            yield from _cut_at_words(out[row : row + 1], start + row * row_length, row_length)
    else:
        first = numbers_per_key - start % numbers_per_key
        yield out[:, :first], start
        yield out[:, first:], start + first
