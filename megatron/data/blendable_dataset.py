"""Several data sets read as one, by weight, without an index of all samples."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from megatron.data.errors import DataError
from odm.order import sample_order
from odm.simplex import check_weights, normalize

MAX_BLOCK_SIZE = 1 << 20  # the share of a data set is exact to one part in a block


class BlendableDataset(torch.utils.data.Dataset):
    """Mixes data sets in fixed proportions; the item at an index is a function of (seed, index).

    Indexes are cut into blocks. A block holds every data set as often as its weight says (rounded
    by largest remainders) in an order shuffled by (seed, block), and hands out consecutive samples
    of each. Any index is found directly, and no sample comes twice before its data set is spent.
    """

    def __init__(
        self, datasets: Sequence[Any], weights: Sequence[float], *, seed: int = 1234
    ) -> None:
        """Takes the data sets.

        Args:
            datasets: Anything with ``len`` and ``[index]``.
            weights: One per data set, not negative; the sum need not be 1.
            seed: Seed of the shuffle inside blocks.

        Raises:
            DataError: If numbers do not match, a weight is not usable or a data set is empty.
        """
        try:
            shares = check_weights(weights, len(datasets), where="blend: weights")
        except ValueError as error:
            raise DataError(error) from None
        self.datasets = list(datasets)
        self.weights = normalize(shares)
        self.seed = seed
        self._lengths = np.array([len(dataset) for dataset in datasets], dtype=np.int64)
        used_and_empty = np.flatnonzero((self._lengths == 0) & (shares > 0))
        if used_and_empty.size:
            raise DataError(f"blend: data set {used_and_empty[0]} is empty; leave it out")
        self.size = int(self._lengths.sum())
        self.block_size = min(self.size, MAX_BLOCK_SIZE)
        self._counts = apportion(self.weights, self.block_size)
        # What is left for the last block has shares of its own, or it would skip and repeat.
        self._last_counts = apportion(self.weights, self.size % self.block_size)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        """Returns the item of the data set that the blend puts at ``index``."""
        if not 0 <= index < self.size:
            raise IndexError(f"blend: no item {index}, there are {self.size}")
        dataset, sample = self.locate(index)
        return self.datasets[dataset][sample]

    def locate(self, index: int) -> tuple[int, int]:
        """Returns which data set, and which of its samples, is at ``index``."""
        block, place = divmod(int(index), self.block_size)
        is_whole = (block + 1) * self.block_size <= self.size
        counts = self._counts if is_whole else self._last_counts
        ends = np.cumsum(counts)
        shuffled = sample_order(self.seed, "blend", block, int(ends[-1]))[place]
        dataset = int(np.searchsorted(ends, shuffled, side="right"))
        first = int(ends[dataset] - counts[dataset])
        sample = block * int(self._counts[dataset]) + shuffled - first
        return dataset, sample % int(self._lengths[dataset])


def apportion(shares: np.ndarray, total: int) -> np.ndarray:
    """Divides ``total`` into whole numbers in proportion, by largest remainders.

    Args:
        shares: Shape (K,), sum 1.
        total: Number to divide.

    Returns:
        Shape (K,), int64, sum ``total``; each within 1 of ``shares * total``.
    """
    exact = shares * total
    counts = np.floor(exact).astype(np.int64)
    missing = total - int(counts.sum())
    largest_first = np.argsort(counts - exact, kind="stable")
    counts[largest_first[:missing]] += 1
    return counts
