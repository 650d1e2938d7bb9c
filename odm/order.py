"""The order in which a domain's samples are read: a keyed permutation with constant memory.

``sample_order(seed, domain, epoch, size)`` needs no earlier epoch and no table of all samples, so
any position of any epoch is found at once, also after a restart.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from operator import index

import numpy as np
from numpy.typing import ArrayLike

from .arguments import refuse_argument, whole_number
from .simplex import IntArray

# Rounds of the Feistel network. Over 2500 epochs of 1025 samples, a chi-square test of the
# differences between neighbours gives z = 39 with four rounds and |z| < 2.2 with six. Small domains
# have too few digits to mix, so they are simply shuffled.
_NUM_ROUNDS = 6
_MAX_TABLE_SIZE = 1024
_MAX_SIZE = 2**62
_MASK_64 = 2**64 - 1
# For fewer positions plain integers are faster than numpy calls of half a microsecond.
_MAX_SCALAR_POSITIONS = 8


class SampleOrder:
    """A permutation of ``range(size)``; call it with positions to get samples.

    For up to 1024 samples it is a shuffled table. For more, it writes a position as two digits
    (left, right) in bases a and b with ``a * b >= size``, ``a, b ~ sqrt(size)``, and runs an
    alternating Feistel network with addition modulo a and b, a bijection of ``range(a * b)``.
    Results outside ``range(size)`` (at most one in sqrt(size)) are encrypted again until they are
    inside; the whole is still a bijection (cycle walking).
    """

    def __init__(self, size: int, key: bytes) -> None:
        self.size = size
        words = [int.from_bytes(key[i : i + 8], "little") for i in range(0, len(key), 8)]
        self._table: IntArray | None = None
        if size <= _MAX_TABLE_SIZE:
            stream = np.random.Philox(key=np.array(words[:2], dtype=np.uint64))
            self._table = stream.random_raw(size).argsort(kind="stable").astype(np.int64)
            return
        self._left_base = math.isqrt(size - 1) + 1
        self._right_base = -(-size // self._left_base)
        # Per round: one odd multiplier, one offset and one more odd multiplier.
        self._rounds = tuple(
            (words[3 * i] | 1, words[3 * i + 1], words[3 * i + 2] | 1) for i in range(_NUM_ROUNDS)
        )
        self._array_rounds = tuple(tuple(map(np.uint64, keys)) for keys in self._rounds)

    def __len__(self) -> int:
        return self.size

    def __call__(self, positions: ArrayLike) -> IntArray:
        """Maps positions in [0, size) to samples.

        Args:
            positions: Integers of any shape.

        Returns:
            Samples in [0, size), int64, same shape.

        Raises:
            ValueError: If a position is not an integer or outside [0, size).
        """
        values = np.asarray(positions)
        if values.dtype.kind not in "iu":
            if values.size:
                raise ValueError(f"sample order: positions must be integers, got {values.dtype}")
            return np.zeros(values.shape, dtype=np.int64)
        if values.size <= _MAX_SCALAR_POSITIONS:
            samples = [self[value] for value in values.ravel().tolist()]
            return np.array(samples, dtype=np.int64).reshape(values.shape)
        if values.min() < 0 or values.max() >= self.size:
            wrong = values[(values < 0) | (values >= self.size)].flat[0]
            raise ValueError(f"sample order: position {wrong} is not in [0, {self.size})")
        if self._table is not None:
            return self._table[values]
        return self._walk(values.astype(np.uint64).ravel()).astype(np.int64).reshape(values.shape)

    def __getitem__(self, position: int) -> int:
        """Maps one position in [0, size) to its sample; call the object for several."""
        try:  # an integer of numpy would overflow in the arithmetic on 64 bits
            position = index(position)
        except TypeError:
            refuse_argument("sample order: a position", "a whole number", position)
        if not 0 <= position < self.size:
            raise ValueError(f"sample order: position {position} is not in [0, {self.size})")
        if self._table is not None:
            return int(self._table[position])
        sample = self._encrypt_one(position)
        while sample >= self.size:
            sample = self._encrypt_one(sample)
        return sample

    def __iter__(self) -> Iterator[int]:
        """Samples in reading order, for small domains and for inspection."""
        return (self[position] for position in range(self.size))

    def _walk(self, values: np.ndarray) -> np.ndarray:
        samples = self._encrypt(values)
        outside = np.flatnonzero(samples >= self.size)
        while outside.size:
            samples[outside] = self._encrypt(samples[outside])
            outside = outside[samples[outside] >= self.size]
        return samples

    def _encrypt(self, values: np.ndarray) -> np.ndarray:
        """Feistel network on uint64 values in [0, a * b); per value as ``_encrypt_one``."""
        left_base, right_base = np.uint64(self._left_base), np.uint64(self._right_base)
        left, right = np.divmod(values, right_base)
        for multiply, offset, finish in self._array_rounds:
            mixed = right * multiply + offset
            mixed ^= mixed >> np.uint64(29)
            mixed *= finish
            left, right = right, (left + (mixed >> np.uint64(24))) % left_base
            left_base, right_base = right_base, left_base
        return left * right_base + right

    def _encrypt_one(self, value: int) -> int:
        left_base, right_base = self._left_base, self._right_base
        left, right = divmod(value, right_base)
        for multiply, offset, finish in self._rounds:
            mixed = (right * multiply + offset) & _MASK_64
            mixed = (mixed ^ mixed >> 29) * finish & _MASK_64
            left, right = right, (left + (mixed >> 24)) % left_base
            left_base, right_base = right_base, left_base
        return left * right_base + right


def sample_order(seed: int, domain: str, epoch: int, size: int) -> SampleOrder:
    """Order of one epoch of one domain: a function of (seed, domain name, epoch) and the size.

    Building an order takes 10 to 40 microseconds; keep it for the whole epoch.

    Args:
        seed: Run seed, whose absolute value is below 2^64.
        domain: Name of the domain; its place in the list of domains does not matter.
        epoch: Number of the epoch, counted from 0.
        size: Samples of an epoch, in [1, 2^62].

    Raises:
        ValueError: If the epoch is negative, or a number is not whole or out of range.
    """
    if not isinstance(domain, str):
        refuse_argument("sample order: domain", "a name", domain)
    seed = whole_number("sample order: seed", seed, -_MASK_64, _MASK_64)
    epoch = whole_number(f"sample order: epoch of {domain!r}", epoch)
    size = whole_number(f"sample order: size of {domain!r}", size, 1, _MAX_SIZE)
    # The name comes last, so that different (seed, epoch, name) give different texts.
    text = f"odm sample order 1\0{seed}\0{epoch}\0{domain}"
    return SampleOrder(size, hashlib.shake_128(text.encode()).digest(24 * _NUM_ROUNDS))
