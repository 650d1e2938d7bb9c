"""One domain as an endless row of samples of ``seq_length + 1`` tokens."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron.data.errors import DataError
from megatron.data.index_cache import IndexCache
from megatron.data.index_maps import as_array, sample_pieces, sample_tokens, shuffled_stream
from megatron.data.indexed_dataset import MMapIndexedDataset
from odm.order import sample_order
from odm.wording import counted

EPOCHS_IN_MEMORY = 4  # a batch may cross the end of an epoch; more are met only by tiny domains


class GPT2Dataset(torch.utils.data.Dataset):
    """Samples of a domain by position, counted from 0 over all its epochs.

    The sample at a position depends on (seed, domain, epoch) alone: not on the length of the run,
    the batch size or the number of processes. Each epoch shows every sample once.
    """

    def __init__(
        self,
        name: str,
        data_prefix: str | Path,
        documents: Any,
        indexed_dataset: MMapIndexedDataset,
        num_samples: int | None,
        seq_length: int,
        seed: int,
        *,
        cache: IndexCache | None = None,
    ) -> None:
        """Finds or builds the order of the documents.

        Args:
            name: The domain; part of what the order depends on.
            data_prefix: Prefix of the data files, for messages.
            documents: Documents that belong to the split: a range or a list; None for all.
            indexed_dataset: The data set.
            num_samples: The value of ``len``; None for the samples of one epoch.
            seq_length: Tokens of a sample less one.
            seed: Seed of the run.
            cache: Where the order of many documents is kept; by default beside the data.

        Raises:
            DataError: If the documents do not fill one sample.
        """
        self.name = name
        self.seq_length = seq_length
        self.indexed_dataset = indexed_dataset
        self.num_samples = num_samples
        self._seed = seed
        chosen = range(len(indexed_dataset)) if documents is None else documents
        if not isinstance(chosen, range):
            chosen = as_array(chosen)
        self.num_documents = len(chosen)
        self.num_tokens = indexed_dataset.num_tokens(chosen)
        require_one_sample(
            name, data_prefix, len(chosen), num_tokens=self.num_tokens, seq_length=seq_length
        )
        self._stream = shuffled_stream(
            indexed_dataset, chosen, seed=seed, domain=name, cache=cache or IndexCache()
        )
        self.samples_per_epoch = self._stream.num_samples(seq_length)
        self._order_of_epoch = functools.lru_cache(maxsize=EPOCHS_IN_MEMORY)(self._make_order)

    def _make_order(self, epoch: int) -> Any:
        return sample_order(self._seed, self.name, epoch, self.samples_per_epoch)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_order_of_epoch"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._order_of_epoch = functools.lru_cache(maxsize=EPOCHS_IN_MEMORY)(self._make_order)

    def __len__(self) -> int:
        return self.samples_per_epoch if self.num_samples is None else self.num_samples

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields ``len`` samples; without this a loop over the positions would never end."""
        return (self[position] for position in range(len(self)))

    def __getitem__(self, position: int) -> dict[str, np.ndarray]:
        """Returns ``{"text": tokens}`` of any position >= 0, shape (seq_length + 1,), int64."""
        return {"text": self.get_many(np.array([position]))[0]}

    def get_many(self, positions: np.ndarray) -> np.ndarray:
        """Reads samples by position.

        Args:
            positions: Counted from 0 over all epochs, in any order, shape (n,).

        Returns:
            Tokens, shape (n, seq_length + 1), int64.

        Raises:
            IndexError: If a position is negative.
        """
        samples = self._samples_at(np.asarray(positions, dtype=np.int64))
        return sample_tokens(
            self.indexed_dataset, self._stream, samples, seq_length=self.seq_length
        )

    def will_need(self, positions: np.ndarray) -> None:
        """Asks the system to read samples into memory, without waiting for them; shape (n,)."""
        samples = self._samples_at(np.asarray(positions, dtype=np.int64))
        pieces = sample_pieces(
            self.indexed_dataset, self._stream, samples, seq_length=self.seq_length
        )
        self.indexed_dataset.will_need(*pieces)

    def _samples_at(self, positions: np.ndarray) -> np.ndarray:
        """Maps positions to samples of the document stream."""
        if not positions.size:
            return positions
        first, last = int(positions.min()), int(positions.max())
        if first < 0:
            raise IndexError(f"domain {self.name}: position {first}; they count from 0")
        size = self.samples_per_epoch
        if first // size == last // size:  # nearly always; saves a third of the time
            return self._order_of_epoch(first // size)(positions % size)
        samples = np.empty_like(positions)
        epochs = positions // size
        for epoch in np.unique(epochs):
            of_epoch = epochs == epoch
            samples[of_epoch] = self._order_of_epoch(int(epoch))(positions[of_epoch] % size)
        return samples


def require_one_sample(
    name: str, prefix: str | Path, num_documents: int, *, num_tokens: int, seq_length: int
) -> None:
    """Refuses a domain that cannot fill one sample."""
    if num_tokens > seq_length:
        return
    if num_tokens == 0:
        raise DataError(
            f"{prefix}: domain {name} is empty ({counted(num_documents, 'document')}, no tokens); "
            "give it text or leave it out"
        )
    raise DataError(
        f"{prefix}: domain {name} is shorter than one sample: {counted(num_tokens, 'token')} in "
        f"{counted(num_documents, 'document')}, seq_length {seq_length} needs {seq_length + 1}; "
        "use a smaller seq_length or more text"
    )
