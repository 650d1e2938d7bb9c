"""Evaluation of each domain on the same samples every time, whatever the run and its layout."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from megatron.data.batch import Batch, make_batch
from megatron.data.held_out import HeldOutSamples


@dataclasses.dataclass(frozen=True)
class EvaluationDomain:
    """A domain and the part of it that is evaluated."""

    samples: HeldOutSamples
    text_bytes_per_token: float | None = None
    """Bytes of text per token, for bits per byte; None if the data set does not tell."""

    @property
    def name(self) -> str:
        """Name of the domain."""
        return self.samples.name

    @property
    def num_samples(self) -> int:
        """How many samples are evaluated, at least 1."""
        return self.samples.num_samples


class EvaluationBatches:
    """The evaluation batches of one data-parallel rank, domain by domain.

    Every rank gets the same number of batches of a domain; otherwise collective operations inside
    a forward pass would wait forever. Rows that fill up the last batches have ``loss_mask`` 0.
    """

    def __init__(
        self,
        domains: Sequence[EvaluationDomain],
        *,
        dp_rank: int,
        dp_size: int,
        micro_batch_size: int,
        eod_token: int,
        eod_mask_loss: bool = False,
        vocab_size: int | None = None,
    ) -> None:
        """Takes the domains; reads nothing yet.

        Args:
            domains: What to evaluate.
            dp_rank: Rank among the ``dp_size`` that read different data.
            dp_size: Number of data-parallel ranks.
            micro_batch_size: Rows of a batch.
            eod_token: Id of the end of a document.
            eod_mask_loss: See ``make_batch``.
            vocab_size: See ``make_batch``.
        """
        self._domains = tuple(domains)
        self._dp_rank, self._dp_size = dp_rank, dp_size
        self._micro_batch_size = micro_batch_size
        self._eod_token, self._eod_mask_loss = eod_token, eod_mask_loss
        self._vocab_size = vocab_size

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains; ``domain_ids`` of the batches count them from 0."""
        return tuple(domain.name for domain in self._domains)

    @property
    def num_samples(self) -> tuple[int, ...]:
        """Samples of each domain, over all ranks."""
        return tuple(domain.num_samples for domain in self._domains)

    @property
    def text_bytes_per_token(self) -> tuple[float | None, ...]:
        """Bytes of text per token of each domain, if known."""
        return tuple(domain.text_bytes_per_token for domain in self._domains)

    def num_batches(self, domain_id: int) -> int:
        """Batches of a domain on each rank."""
        rows_per_round = self._dp_size * self._micro_batch_size
        return -(-self._domains[domain_id].num_samples // rows_per_round)

    def batches(self, domain_id: int) -> Iterator[Batch]:
        """Reads the batches of a domain on this rank.

        Args:
            domain_id: Position of the domain in ``domains``.

        Yields:
            ``num_batches(domain_id)`` batches of ``micro_batch_size`` rows.

        Raises:
            DataError: If a token is not in the vocabulary.
        """
        domain = self._domains[domain_id]
        rows = np.arange(self._micro_batch_size)
        for number in range(self.num_batches(domain_id)):
            first = (number * self._dp_size + self._dp_rank) * self._micro_batch_size
            is_padding = first + rows >= domain.num_samples
            positions = np.where(is_padding, 0, first + rows)
            batch = make_batch(
                domain.samples.get_many(positions),
                np.full(len(rows), domain_id),
                eod_token=self._eod_token,
                eod_mask_loss=self._eod_mask_loss,
                vocab_size=self._vocab_size,
                domains=self.domains,
            )
            batch.loss_mask[is_padding] = 0.0
            yield batch
