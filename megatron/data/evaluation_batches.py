"""Evaluation of each domain on the same samples every time, whatever the run and its layout."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch

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
        tells_documents: bool = False,
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
            tells_documents: See ``make_batch``.
            vocab_size: See ``make_batch``.
        """
        self._domains = tuple(domains)
        self.domains = tuple(domain.name for domain in domains)
        """Names of the domains; ``domain_ids`` of the batches count them from 0."""
        self.num_samples = tuple(domain.num_samples for domain in domains)
        """Samples of each domain, over all ranks."""
        self.text_bytes_per_token = tuple(domain.text_bytes_per_token for domain in domains)
        """Bytes of text per token of each domain, if known."""
        self._dp_rank, self._dp_size = dp_rank, dp_size
        self._micro_batch_size = micro_batch_size
        self._eod_token, self._eod_mask_loss = eod_token, eod_mask_loss
        self._tells_documents = tells_documents
        self._vocab_size = vocab_size

    def num_batches(self, domain_id: int) -> int:
        """Batches of a domain on each rank."""
        return self._num_rounds(self.num_samples[domain_id])

    def batches(self, domain_id: int) -> Iterator[Batch]:
        """Reads the batches of a domain on this rank.

        Args:
            domain_id: Position of the domain in ``domains``.

        Yields:
            ``num_batches(domain_id)`` batches of ``micro_batch_size`` rows.

        Raises:
            DataError: If a token is not in the vocabulary.
        """
        count = self.num_samples[domain_id]
        domain_ids = np.full(count, domain_id)
        return self.chosen(domain_ids, np.arange(count), ids=domain_ids)

    def chosen(
        self, domain_ids: np.ndarray, samples: np.ndarray, *, ids: np.ndarray
    ) -> Iterator[Batch]:
        """Reads some samples of some domains, in the order given; every rank takes its share.

        Args:
            domain_ids: Domain of each sample, as a position in ``domains``, shape (n,).
            samples: Number of each sample inside its domain, shape (n,).
            ids: What ``domain_ids`` of the batches shall be for each sample, shape (n,).

        Yields:
            Batches of ``micro_batch_size`` rows, as many on every rank.

        Raises:
            DataError: If a token is not in the vocabulary.
        """
        rows = np.arange(self._micro_batch_size)
        for number in range(self._num_rounds(len(samples))):
            first = (number * self._dp_size + self._dp_rank) * self._micro_batch_size
            is_padding = first + rows >= len(samples)
            places = np.where(is_padding, 0, first + rows)
            batch = make_batch(
                self._read(domain_ids[places], samples[places]),
                domain_ids[places],
                eod_token=self._eod_token,
                eod_mask_loss=self._eod_mask_loss,
                tells_documents=self._tells_documents,
                vocab_size=self._vocab_size,
                domains=self.domains,
            )
            batch.loss_mask[is_padding] = 0.0
            yield dataclasses.replace(batch, domain_ids=torch.from_numpy(ids[places]))

    def _num_rounds(self, num_samples: int) -> int:
        """Batches that each rank needs for ``num_samples`` samples."""
        return -(-num_samples // (self._dp_size * self._micro_batch_size))

    def _read(self, domain_ids: np.ndarray, samples: np.ndarray) -> np.ndarray:
        """Tokens of the samples, shape (n, seq_length + 1); one read per domain."""
        tokens = None
        for domain_id in np.unique(domain_ids):
            is_of_domain = domain_ids == domain_id
            found = self._domains[domain_id].samples.get_many(samples[is_of_domain])
            if tokens is None:
                tokens = np.empty((len(samples), found.shape[1]), dtype=found.dtype)
            tokens[is_of_domain] = found
        assert tokens is not None  # a batch has at least one row
        return tokens
