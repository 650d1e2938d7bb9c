"""How the losses of domains follow from the samples that were read: the physics of a world."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..simplex import FloatArray

START_NATS = 10.8
"""Loss of a model that knows nothing: the logarithm of a vocabulary of 50 thousand tokens."""

USEFUL_REPEATS = 15.0
"""Passes after which most of what repetition can give is had, inside a mixture; arXiv:2605.12715
reports 15 to 20, arXiv:2305.16264 about 15 for a corpus on its own."""

MEMORISED_NATS = 0.4
"""How far the training loss of text that is read again and again falls below its held-out loss."""


class Laws(Protocol):
    """Losses as a function of what was read."""

    def losses(self, shares: FloatArray) -> FloatArray:
        """Held-out losses in nats, shape (K,).

        Args:
            shares: Samples read of each domain, discounted for repetition, over all samples of the
                whole run, shape (K,).
        """
        ...


@dataclass(frozen=True, eq=False)
class PowerLaws:
    """``loss = floor + scale * (start + max(exposure . shares - threshold, 0)) ^ -exponent``.

    ``exposure`` has shape (K, K): row i says what a share of each domain is worth to domain i. All
    other fields have shape (K,). ``start`` is what makes the loss ``start_nats`` before training.
    """

    floor: FloatArray
    scale: FloatArray
    exponent: FloatArray
    exposure: FloatArray
    threshold: FloatArray | float = 0.0
    start_nats: FloatArray | float = START_NATS

    @property
    def start(self) -> FloatArray:
        return ((self.start_nats - self.floor) / self.scale) ** (-1.0 / self.exponent)

    def losses(self, shares: FloatArray) -> FloatArray:
        """As in `Laws`."""
        seen = np.maximum(self.exposure @ shares - self.threshold, 0.0) + self.start
        return self.floor + self.scale * seen**-self.exponent


@dataclass(frozen=True, eq=False)
class CapacityLaws:
    """Domains compete for the parameters of the model, and learn from their own data.

    All fields but ``capacity_exponent`` have shape (K,). Losses start near `START_NATS`.

    ``loss_i = floor_i + capacity_i * x_i ^ -b + data_i * (start + share_i) ^ -exponent_i``, where
    the parts ``x`` of the model's capacity (sum 1) minimise the mean of ``capacity_i * x_i ^ -b``
    over what was read: a domain that is read much takes capacity from the others, noise too.

    Source: the form of arXiv:2606.08167; the numbers of a world are ours.
    """

    floor: FloatArray
    capacity: FloatArray
    capacity_exponent: float
    data: FloatArray
    exponent: FloatArray

    def losses(self, shares: FloatArray) -> FloatArray:
        """As in `Laws`."""
        missing = START_NATS - self.floor - self._crowded(np.ones_like(shares))
        start = (missing / self.data) ** (-1.0 / self.exponent)
        own = self.data * (start + shares) ** -self.exponent
        return self.floor + self._crowded(shares) + own

    def _crowded(self, shares: FloatArray) -> FloatArray:
        """What the loss owes to the part of the model that each domain gets, shape (K,)."""
        mixture = np.maximum(shares, 1e-9)
        wanted = (mixture / mixture.sum() * self.capacity) ** (1.0 / (1.0 + self.capacity_exponent))
        return self.capacity * (wanted / wanted.sum()) ** -self.capacity_exponent


def useful_samples(samples: FloatArray, unique: FloatArray) -> FloatArray:
    """Samples discounted for repetition: each pass over the same text is worth less, shape (K,).

    ``unique * (1 + R * (1 - exp(-(passes - 1) / R)))`` beyond the first pass, R = `USEFUL_REPEATS`.
    """
    repeats = np.maximum(samples / unique - 1.0, 0.0)
    with np.errstate(invalid="ignore"):  # infinite text times no repeats
        gained = unique * USEFUL_REPEATS * -np.expm1(-repeats / USEFUL_REPEATS)
    return np.where(repeats > 0.0, unique + gained, samples)


def memorised_nats(samples: FloatArray, unique: FloatArray) -> FloatArray:
    """How far the training loss is below the held-out loss through repetition, shape (K,)."""
    repeats = np.maximum(samples / unique - 1.0, 0.0)
    return MEMORISED_NATS * -np.expm1(-repeats / USEFUL_REPEATS)
