"""Batches for a plain PyTorch loop, drawn from a ``MixtureController``.

``MixtureBatchSampler`` gives a ``DataLoader`` over a ``ConcatDataset`` its indices;
``MixtureIterableDataset`` reads several map-style datasets itself. Both count steps from
``first_step``, so a restart needs only the controller's state and the number of the next step.
``HeldOutSamples`` measures held-out losses for a controller with ``reward="heldout"``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, Sampler, get_worker_info

from ..arguments import refuse_argument, whole_number, whole_numbers
from ..controller import MixtureController
from ..held_out import HeldOut, HeldOutRecord
from ..order import SampleOrder, sample_order
from ..schedule import Draw
from ..simplex import IntArray
from ..wording import counted


class DomainOrders:
    """Maps the positions of a draw to samples; keeps the order of one epoch per domain.

    Args:
        domains: Names of the domains, in the controller's order.
        sizes: Number of samples per domain, each >= 1.
        seed: Seed of the sample orders.
    """

    def __init__(self, domains: Sequence[str], sizes: Sequence[int], *, seed: int) -> None:
        sizes = whole_numbers("torch: sizes of the datasets", sizes)
        if len(sizes) != len(domains):
            raise ValueError(
                f"torch: {counted(len(sizes), 'dataset')} for {counted(len(domains), 'domain')}"
            )
        for name, size in zip(domains, sizes, strict=True):
            if size < 1:
                raise ValueError(f"torch: the dataset of domain {name!r} is empty")
        self._domains, self._sizes, self._seed = tuple(domains), sizes, seed
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
        self._batch_size, self._run_length = _batch(batch_size, run_length)
        self._steps = _steps(first_step, num_steps)

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
        self._controller, self._datasets = controller, _listed(datasets)
        self._orders = DomainOrders(
            controller.domains,
            [len(dataset) for dataset in self._datasets],
            seed=controller.schedule.seed if seed is None else seed,
        )
        self._batch_size, self._run_length = _batch(batch_size, run_length)
        self._steps = _steps(first_step, num_steps)

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


class HeldOutSamples:
    """Fixed held-out samples of every domain, measured a part at a time.

    The samples are spread evenly over each dataset and are the same in the whole run. In a
    distributed run every process measures a share of them, and all get the same result. Save
    ``state_dict()`` with the controller's state.

    Args:
        datasets: Held-out map-style datasets, in the controller's order; an empty one is a domain
            without held-out text.
        num_samples: Samples per domain, or all of a smaller dataset.
        num_parts: Measurements until every sample has been measured again.
    """

    def __init__(
        self, datasets: Sequence[Any], *, num_samples: int = 16, num_parts: int = 8
    ) -> None:
        count = whole_number("torch: num_samples", num_samples, 1)
        self._datasets = _listed(datasets)
        self._record = HeldOutRecord([min(count, len(d)) for d in self._datasets], num_parts)

    @property
    def num_domains(self) -> int:
        """Number of domains K."""
        return self._record.num_domains

    def measure(
        self,
        step: int,
        losses_of: Callable[[list[Any]], tuple[torch.Tensor, torch.Tensor]],
        *,
        batch_size: int = 8,
    ) -> HeldOut:
        """Measures the next part; every process calls it.

        Args:
            step: The step after which it is measured, counted from 1.
            losses_of: Function of a list of samples that returns the sum of the losses, in nats,
                and the number of tokens of each sample, both of shape (n,). It is called without
                gradients, equally often in every process; put the model into evaluation mode.
            batch_size: Samples per call.

        Returns:
            What to pass to ``controller.observe(..., held_out=)``.

        Raises:
            ValueError: If a loss is not finite, or ``losses_of`` returns something else.
        """
        batch_size = whole_number("torch: batch_size", batch_size, 1)
        domains, windows = self._record.next_windows()
        rank, size = 0, 1
        is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if is_distributed:
            rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        sums = torch.zeros(2, len(windows), dtype=torch.float64)
        for first in range(0, len(windows), batch_size * size):
            rows = np.arange(first + rank, first + batch_size * size, size)
            is_row = rows < len(windows)
            rows = np.where(is_row, rows, 0)  # every process makes the same number of calls
            samples = [self._sample(domains[row], windows[row]) for row in rows]
            with torch.no_grad():
                losses, tokens = _per_sample(losses_of(samples), len(samples))
            sums = sums.to(losses.device)
            both = torch.stack((losses.double(), tokens.to(losses.device).double()))
            sums[:, rows[is_row]] = both[:, is_row]
        if is_distributed:
            torch.distributed.all_reduce(sums)
        loss_sum, token_count = sums.cpu().numpy()
        return self._record.update(step, loss_sum, token_count)

    def _sample(self, domain: int, window: int) -> Any:
        """Reads a window: the middle of one of as many equal stretches as there are windows."""
        total, count = len(self._datasets[domain]), int(self._record.num_windows[domain])
        return self._datasets[domain][(2 * int(window) + 1) * total // (2 * count)]

    def state_dict(self) -> dict[str, Any]:
        """The last loss of each sample, JSON data for any number of processes."""
        return self._record.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> bool:
        """Continues from a state; returns whether it is of the same samples, else all are new."""
        return self._record.load_state_dict(state)


def _listed(datasets: Iterable[Any]) -> list[Any]:
    """The datasets as a list, after a check that each has a length."""
    found = list(datasets) if isinstance(datasets, Iterable) else None
    if found is None or not all(hasattr(dataset, "__len__") for dataset in found):
        refuse_argument("torch: datasets", "a list of datasets that have a length", datasets)
    return found


def _batch(batch_size: int, run_length: int) -> tuple[int, int]:
    size = whole_number("torch: batch_size", batch_size, 1)
    length = whole_number("torch: run_length", run_length, 1)
    if size % length:
        raise ValueError(f"torch: batch_size {size} must be a multiple of run_length {length}")
    return size, length


def _steps(first_step: int, num_steps: int) -> range:
    first = whole_number("torch: first_step", first_step, 1)
    return range(first, first + whole_number("torch: num_steps", num_steps))


def _per_sample(result: Any, num_samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What ``losses_of`` returned: two tensors with a number per sample."""
    is_pair = isinstance(result, (list, tuple)) and len(result) == 2
    shape = (num_samples,)
    if not is_pair or any(getattr(part, "shape", None) != shape for part in result):
        refuse_argument(
            f"torch: losses_of of {counted(num_samples, 'sample')}", "two tensors (n,)", result
        )
    return result[0], result[1]
