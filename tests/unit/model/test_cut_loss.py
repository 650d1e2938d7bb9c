"""The loss over a vocabulary that is cut over ranks, which here are threads of one process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from megatron.model.loss import VocabularyPart, chunked_cross_entropy, token_losses
from megatron.mpu import TensorParallel
from megatron.sizing import loss_chunks

TOKENS, HIDDEN, VOCABULARY = 11, 6, 13


@dataclass
class Meeting:
    """Where the threads bring their tensors."""

    size: int
    brought: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.size, timeout=20)

    def reduce(self, rank: int, tensor: Tensor, op: Any) -> Tensor:
        self.brought[rank] = tensor.clone()
        self.barrier.wait()
        parts = torch.stack([self.brought[other] for other in range(self.size)])
        self.barrier.wait()  # nobody brings the next one before all have read
        return tensor.copy_(parts.amax(dim=0) if op == dist.ReduceOp.MAX else parts.sum(dim=0))


@dataclass(frozen=True)
class Thread(TensorParallel):
    """A rank of a tensor-parallel group whose group is a `Meeting`."""

    def all_reduce(self, tensor: Tensor, op: Any = dist.ReduceOp.SUM) -> Tensor:
        return self.group.reduce(self.rank, tensor, op)


def on_ranks(sizes: Sequence[int], action: Callable[[VocabularyPart, int], Any]) -> list[Any]:
    """Calls ``action`` with the part of each rank, ``sizes`` tokens each, and its first token."""
    meeting = Meeting(len(sizes))
    firsts = [sum(sizes[:rank]) for rank in range(len(sizes))]
    parts = [
        VocabularyPart(first, size, Thread(len(sizes), rank, meeting))
        for rank, (first, size) in enumerate(zip(firsts, sizes, strict=True))
    ]
    with ThreadPoolExecutor(len(sizes)) as pool:
        return list(pool.map(action, parts, firsts))


def make_inputs(scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator, dtype=torch.float64)
    weight = scale * torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)
    labels[:4] = torch.tensor([0, 6, 7, 12])  # the edges of the parts
    return hidden, weight, labels, torch.rand(TOKENS, generator=generator, dtype=torch.float64)


def plain(hidden: Tensor, weight: Tensor, labels: Tensor, token_weight: Tensor) -> list[Tensor]:
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logits = hidden @ weight.t()
    nll = logits.logsumexp(dim=1) - logits[torch.arange(TOKENS), labels]
    penalty = 0.01 * logits.logsumexp(dim=1).square()
    loss = ((nll + penalty) * token_weight).sum()
    return [loss, nll, *torch.autograd.grad(loss, (hidden, weight))]


@pytest.mark.parametrize("sizes", [(7, 6), (13, 0), (5, 5, 3)])
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_ranks_together_have_the_loss_and_the_gradients_of_the_whole(sizes, scale, monkeypatch):
    monkeypatch.setattr(loss_chunks, "CHUNK_BYTES", 4 * (max(sizes) + 2) * 4)
    monkeypatch.setattr(loss_chunks, "MIN_CHUNK_TOKENS", 1)
    hidden, weight, labels, token_weight = make_inputs(scale)
    num_rows = max(sizes) + 2  # the last rows are padding, full of what must not count

    def rank(part: VocabularyPart, first: int) -> list[Tensor]:
        rows = torch.full((num_rows, HIDDEN), 50.0, dtype=torch.float64)
        rows[: part.size] = weight[first : first + part.size]
        own, rows = hidden.clone().requires_grad_(), rows.requires_grad_()
        loss, nll = chunked_cross_entropy(own, rows, labels, token_weight, part=part, z_loss=0.01)
        loss.backward()
        read = token_losses(hidden, rows.detach(), labels, part)
        assert not rows.grad[part.size :].any()
        return [loss.detach(), nll, read, own.grad, rows.grad[: part.size]]

    expected_loss, expected_nll, of_hidden, of_weight = plain(hidden, weight, labels, token_weight)
    results = on_ranks(sizes, rank)
    for loss, nll, read, _, _ in results:
        torch.testing.assert_close(loss, expected_loss.detach())
        torch.testing.assert_close(nll, expected_nll.detach())
        torch.testing.assert_close(read, expected_nll.detach())
    torch.testing.assert_close(sum(result[3] for result in results), of_hidden)
    torch.testing.assert_close(torch.cat([result[4] for result in results]), of_weight)
