"""The batches of a run with mixing: each rank reads its part of the plan."""

from collections.abc import Iterator, Sequence

import numpy as np

from megatron.data.batch import Batch, make_batch
from megatron.data.disk_waits import DiskWaits
from megatron.data.gpt2_dataset import GPT2Dataset
from odm.schedule import Draw


class MixedBatches:
    """Turns the plan of a step into the micro-batches of one data-parallel rank.

    The plan counts the slots of the global batch; micro-batch g of rank r is the slots
    ``(g * dp_size + r) * micro_batch_size`` on. So neither the number of ranks nor the
    accumulation changes which samples a step sees.
    """

    def __init__(
        self,
        datasets: Sequence[GPT2Dataset],
        *,
        dp_rank: int,
        dp_size: int,
        micro_batch_size: int,
        gradient_accumulation_steps: int,
        eod_token: int,
        eod_mask_loss: bool = False,
        tells_documents: bool = False,
        vocab_size: int | None = None,
    ) -> None:
        """Opens the data of the domains.

        Args:
            datasets: One per domain, in the order in which plans number them.
            dp_rank: Rank among the ``dp_size`` that read different data.
            dp_size: Number of data-parallel ranks.
            micro_batch_size: Rows of a micro-batch.
            gradient_accumulation_steps: Micro-batches of a step on each rank.
            eod_token: Id of the end of a document.
            eod_mask_loss: See ``make_batch``.
            tells_documents: See ``make_batch``.
            vocab_size: See ``make_batch``.
        """
        self.domains = tuple(dataset.name for dataset in datasets)
        """Names of the domains."""
        self.samples_per_epoch = np.array([d.samples_per_epoch for d in datasets], dtype=np.int64)
        """Samples that each domain has, shape (K,)."""
        self._datasets = tuple(datasets)
        self._dp_rank, self._dp_size = dp_rank, dp_size
        self._micro_batch_size = micro_batch_size
        self._num_micro_batches = gradient_accumulation_steps
        self._eod_token, self._eod_mask_loss = eod_token, eod_mask_loss
        self._tells_documents = tells_documents
        self._vocab_size = vocab_size
        self._disk_waits = DiskWaits()

    @property
    def samples_by_domain(self) -> dict[str, int]:
        """`samples_per_epoch` by name."""
        return dict(zip(self.domains, self.samples_per_epoch.tolist(), strict=True))

    @property
    def global_batch_size(self) -> int:
        """Samples of a step over all ranks."""
        return self._dp_size * self._micro_batch_size * self._num_micro_batches

    @property
    def seq_length(self) -> int:
        """Tokens of a sample that the loss counts."""
        return self._datasets[0].seq_length

    def batches(self, draw: Draw) -> Iterator[Batch]:
        """Reads the micro-batches of this rank, one at a time.

        Args:
            draw: A plan of ``global_batch_size`` slots.

        Yields:
            ``gradient_accumulation_steps`` batches of ``micro_batch_size`` rows.

        Raises:
            DataError: If a token is not in the vocabulary.
        """
        own_slots = [
            slice(first, first + self._micro_batch_size)
            for first in range(
                self._dp_rank * self._micro_batch_size,
                self._num_micro_batches * self._dp_size * self._micro_batch_size,
                self._dp_size * self._micro_batch_size,
            )
        ]
        if self._disk_waits.next_step():
            self._will_need(draw, own_slots)
        for slots in own_slots:
            domain_ids = draw.domains[slots]
            with self._disk_waits.watch():
                tokens = self._read(domain_ids, draw.positions[slots])
            yield make_batch(
                tokens,
                domain_ids,
                eod_token=self._eod_token,
                eod_mask_loss=self._eod_mask_loss,
                tells_documents=self._tells_documents,
                vocab_size=self._vocab_size,
                domains=self.domains,
            )

    def _will_need(self, draw: Draw, own_slots: Sequence[slice]) -> None:
        """Asks the system to read all samples of a step at the same time."""
        domain_ids = np.concatenate([draw.domains[slots] for slots in own_slots])
        positions = np.concatenate([draw.positions[slots] for slots in own_slots])
        for domain_id in np.unique(domain_ids):
            self._datasets[domain_id].will_need(positions[domain_ids == domain_id])

    def _read(self, domain_ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Reads samples of several domains, domain by domain."""
        present = np.unique(domain_ids)
        if len(present) == 1:
            return self._datasets[present[0]].get_many(positions)
        tokens = np.empty((len(positions), self.seq_length + 1), dtype=np.int64)
        for domain_id in present:
            rows = domain_ids == domain_id
            tokens[rows] = self._datasets[domain_id].get_many(positions[rows])
        return tokens
