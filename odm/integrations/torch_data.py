"""Batches for a plain PyTorch loop, drawn from a ``MixtureController``.

``MixtureBatchSampler`` gives a ``DataLoader`` over a ``ConcatDataset`` its indices;
``MixtureIterableDataset`` reads several map-style datasets itself. Both count steps from
``first_step``, so a restart needs only the controller's state and the number of the next step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, Sampler, get_worker_info

from ..controller import MixtureController
from ..order import SampleOrder, sample_order
from ..schedule import Draw
from ..simplex import IntArray


class DomainOrders:
    """Maps the positions of a draw to samples; keeps the order of one epoch per domain.

    Args:
        domains: Names of the domains, in the controller's order.
        sizes: Number of samples per domain, each >= 1.
        seed: Seed of the sample orders.
    """

    def __init__(self, domains: Sequence[str], sizes: Sequence[int], *, seed: int) -> None:
        if len(sizes) != len(domains):
            raise ValueError(f"torch: {len(sizes)} datasets for {len(domains)} domains")
        for name, size in zip(domains, sizes, strict=True):
            if size < 1:
                raise ValueError(f"torch: the dataset of domain {name!r} is empty")
        self._domains, self._sizes, self._seed = tuple(domains), tuple(sizes), seed
        self._orders: dict[int, tuple[int, SampleOrder]] = {}

    def samples(self, draw: Draw) -> IntArray:
        """Sample number within the domain for each slot, int64, shape (num_slots,)."""
        samples = np.empty(draw.num_slots, dtype=np.int64)
        slots = zip(draw.domains.tolist(), draw.positions.tolist(), strict=True)
        for slot, (domain, position) in enumerate(slots):
            epoch, place = divmod(position, self._sizes[domain])
            samples[slot] = self._order(domain, epoch)[place]
        return samples

    def _order(self, domain: int, epoch: int) -> SampleOrder:
        kept = self._orders.get(domain)
        if kept is None or kept[0] != epoch:
            size = self._sizes[domain]
            kept = (epoch, sample_order(self._seed, self._domains[domain], epoch, size))
            self._orders[domain] = kept
        return kept[1]


class MixtureBatchSampler(Sampler[list[int]]):
    """Yields one list of indices into a ``ConcatDataset`` per step; pass as ``batch_sampler``.

    With ``num_workers=0`` every batch uses the weights of the previous step. Workers read ahead by
    ``num_workers * prefetch_factor`` batches, so the weights lag by as many steps.

    Args:
        controller: Draws the plans; its cursors advance as batches are drawn.
        domain_sizes: ``len`` of each dataset of the ``ConcatDataset``, in the controller's order.
        batch_size: Samples a step.
        num_steps: Batches to yield.
        first_step: Number of the first step, counted from 1.
        run_length: Consecutive samples that share a domain; must divide ``batch_size``.
        seed: Seed of the sample orders; defaults to the schedule's.
    """

    def __init__(
        self,
        controller: MixtureController,
        domain_sizes: Sequence[int],
        *,
        batch_size: int,
        num_steps: int,
        first_step: int = 1,
        run_length: int = 1,
        seed: int | None = None,
    ) -> None:
        self._controller = controller
        self._orders = DomainOrders(
            controller.domains,
            domain_sizes,
            seed=controller.schedule.seed if seed is None else seed,
        )
        self._offsets = np.concatenate([[0], np.cumsum(domain_sizes)[:-1]]).astype(np.int64)
        self._batch_size, self._run_length = batch_size, run_length
        self._steps = range(first_step, first_step + num_steps)

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self._steps:
            draw = self._controller.draw(step, self._batch_size, self._run_length)
            yield (self._offsets[draw.domains] + self._orders.samples(draw)).tolist()

    def domain_of(self, indices: Sequence[int]) -> IntArray:
        """Domain of each index of a batch, int64."""
        return np.searchsorted(self._offsets, np.asarray(indices), side="right") - 1


class MixtureIterableDataset(IterableDataset):
    """Yields samples ``{"domain_ids": k, **sample}``; ``DataLoader`` makes batches of them.

    ``batch_size`` is that of an optimizer step; the loader's batch size must divide it.
    ``num_workers`` must be 0, since each worker process would have its own controller; with
    workers, use the batch sampler.

    Args:
        controller: Draws the plans.
        datasets: Map-style datasets whose samples are mappings, in the controller's order.
        batch_size: Samples a step.
        num_steps: Steps to yield.
        first_step: Number of the first step, counted from 1.
        run_length: Consecutive samples that share a domain; must divide ``batch_size``.
        seed: Seed of the sample orders; defaults to the schedule's.
    """

    def __init__(
        self,
        controller: MixtureController,
        datasets: Sequence[Any],
        *,
        batch_size: int,
        num_steps: int,
        first_step: int = 1,
        run_length: int = 1,
        seed: int | None = None,
    ) -> None:
        self._controller, self._datasets = controller, list(datasets)
        self._orders = DomainOrders(
            controller.domains,
            [len(dataset) for dataset in datasets],
            seed=controller.schedule.seed if seed is None else seed,
        )
        self._batch_size, self._run_length = batch_size, run_length
        self._steps = range(first_step, first_step + num_steps)

    def __len__(self) -> int:
        return len(self._steps) * self._batch_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if get_worker_info() is not None:
            raise ValueError(
                "torch: MixtureIterableDataset needs num_workers=0, since every worker would draw "
                "from its own copy of the controller; with workers, use MixtureBatchSampler"
            )
        for step in self._steps:
            draw = self._controller.draw(step, self._batch_size, self._run_length)
            samples = self._orders.samples(draw).tolist()
            for domain, sample in zip(draw.domains.tolist(), samples, strict=True):
                item: Mapping[str, Any] = self._datasets[domain][sample]
                yield {"domain_ids": domain, **item}
