"""Held-out text as samples that depend only on the text and the sample length."""

from pathlib import Path

import numpy as np

from megatron.data.gpt2_dataset import require_one_sample
from megatron.data.indexed_dataset import MMapIndexedDataset


class HeldOutSamples:
    """Samples of the documents in the order of the file, spread over all of them.

    They do not depend on the seed, the name or other data sets, so losses of different runs can be
    compared. No order is cached: the documents are used in the order in which they are stored.
    """

    def __init__(
        self,
        name: str,
        data_prefix: str | Path,
        documents: range | None,
        indexed_dataset: MMapIndexedDataset,
        *,
        seq_length: int,
        max_samples: int | None = None,
    ) -> None:
        """Counts the samples; reads no text yet.

        Args:
            name: The domain, for messages and reports.
            data_prefix: Prefix of the data files, for messages.
            documents: Documents that are held out, in order; None for all.
            indexed_dataset: The data set.
            seq_length: Tokens of a sample less one.
            max_samples: Maximum number of samples, at least 1; None for all.

        Raises:
            DataError: If the documents do not fill one sample.
        """
        self.name = name
        self._indexed_dataset = indexed_dataset
        self._seq_length = seq_length
        chosen = range(len(indexed_dataset)) if documents is None else documents
        self._first_token = indexed_dataset.num_tokens(range(chosen.start))
        num_tokens = indexed_dataset.num_tokens(chosen)
        require_one_sample(
            name, data_prefix, len(chosen), num_tokens=num_tokens, seq_length=seq_length
        )
        self._available = (num_tokens - 1) // seq_length
        self.num_samples = min(self._available, max_samples or self._available)

    def get_many(self, positions: np.ndarray) -> np.ndarray:
        """Reads samples by position, each in [0, ``num_samples``).

        Returns:
            Tokens, shape (n, seq_length + 1), int64.
        """
        samples = spread_evenly(positions, count=self.num_samples, total=self._available)
        starts = self._first_token + samples * self._seq_length
        places = starts[:, None] + np.arange(self._seq_length + 1)
        return self._indexed_dataset.tokens[places].astype(np.int64)


def spread_evenly(positions: np.ndarray, *, count: int, total: int) -> np.ndarray:
    """Picks ``count`` of ``total``: the middle of each of ``count`` equal stretches.

    Args:
        positions: Numbers of picks, in [0, count), shape (n,).
        count: Number to pick, at most ``total``.
        total: Number of samples to pick from.

    Returns:
        Shape (n,), int64, in [0, total); all of them in order where ``count`` is ``total``.
    """
    return (2 * np.asarray(positions, dtype=np.int64) + 1) * total // (2 * count)
