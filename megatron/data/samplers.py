"""GPT-NeoX's batch sampler for people who feed a ``DataLoader``; training does not use it."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from megatron.data.errors import DataError


class DistributedBatchSampler(torch.utils.data.Sampler[list[Any]]):
    """Cuts a sampler into global batches and gives each rank its contiguous slice.

    ``start_iter`` global batches are skipped once: it is set before a pass and 0 after it. Skipping
    costs nothing for a sequence or a ``SequentialSampler``.
    """

    def __init__(
        self,
        sampler: Sequence[Any] | torch.utils.data.Sampler | Iterable[Any],
        batch_size: int,
        drop_last: bool,
        rank: int,
        world_size: int,
        wrap_last: bool = False,
        gradient_accumulation_steps: int | None = None,
    ) -> None:
        """Takes the sampler.

        Args:
            sampler: Yields indexes, the same on every rank.
            batch_size: Size of the global batch, over all ranks.
            drop_last: Leaves out an incomplete last batch; otherwise its rows are divided.
            rank: Data-parallel rank.
            world_size: Number of data-parallel ranks.
            wrap_last: Fills an incomplete last batch with the first indexes of the pass.
            gradient_accumulation_steps: Not read: an index is one sample however batches are
                accumulated.

        Raises:
            DataError: If the batch cannot be divided among the ranks.
        """
        if world_size < 1 or not 0 <= rank < world_size:
            raise DataError(f"batch sampler: rank {rank} is not one of {world_size} ranks")
        if batch_size < 1 or batch_size % world_size:
            raise DataError(
                f"batch sampler: a batch of {batch_size} is not divisible by {world_size} ranks; "
                "batch_size counts all ranks"
            )
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.wrap_last = wrap_last
        self.rank = rank
        self.world_size = world_size
        self.start_iter = 0

    def __len__(self) -> int:
        whole, rest = divmod(len(self.sampler), self.batch_size)  # type: ignore[arg-type]
        return whole if self.drop_last or not rest else whole + 1

    def __iter__(self) -> Iterator[list[Any]]:
        """Yields the index lists of this rank."""
        first, self.start_iter = self.start_iter * self.batch_size, 0
        indexes = self._indexes_from(first)
        while batch := list(itertools.islice(indexes, self.batch_size)):
            if len(batch) < self.batch_size:
                if self.drop_last:
                    return
                if self.wrap_last:
                    missing = self.batch_size - len(batch)
                    batch += itertools.islice(itertools.cycle(self._indexes_from(0)), missing)
            yield self._slice_of_rank(batch)

    def _slice_of_rank(self, batch: list[Any]) -> list[Any]:
        start = self.rank * len(batch) // self.world_size
        end = (self.rank + 1) * len(batch) // self.world_size
        return batch[start:end]

    def _indexes_from(self, first: int) -> Iterator[Any]:
        """Iterates over the sampler from its index number ``first`` on."""
        if isinstance(self.sampler, torch.utils.data.SequentialSampler):
            return iter(range(len(self.sampler))[first:])
        if isinstance(self.sampler, Sequence):
            return iter(self.sampler[first:])
        return itertools.islice(iter(self.sampler), first, None)
