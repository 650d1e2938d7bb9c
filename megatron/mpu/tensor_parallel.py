"""How a layer takes part in tensor parallelism: a small object instead of global state.

Shapes: b batch, s sequence, h hidden size. With sequence parallelism the activations between the
parallel regions (norms, dropout, residual) are cut along the sequence, (b, s / size, h).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["SINGLE", "TensorParallel"]

Move = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TensorParallel:
    """The tensor-parallel group of a layer, and the operations on activations at its borders.

    With ``size`` 1 every method returns its argument.
    """

    size: int = 1
    rank: int = 0
    group: Any = None
    sequence_parallel: bool = False

    def divide(self, count: int, what: str) -> int:
        """``count / size``, which the configuration has checked to be whole."""
        assert count % self.size == 0, f"{what} {count} is not divisible by {self.size}"
        return count // self.size

    def enter(self, hidden: Tensor) -> Tensor:
        """Into a column-parallel product: every rank needs the whole activation."""
        if self.size == 1:
            return hidden
        if self.sequence_parallel:
            return _Move.apply(hidden, self.gather_sequence, self.reduce_scatter_sequence)
        return _Move.apply(hidden, _keep, self.summed)

    def leave(self, partial: Tensor) -> Tensor:
        """Out of a row-parallel product: sums the parts of all ranks."""
        if self.size == 1:
            return partial
        if self.sequence_parallel:
            return _Move.apply(partial, self.reduce_scatter_sequence, self.gather_sequence)
        return _Move.apply(partial, self.summed, _keep)

    def scatter(self, hidden: Tensor) -> Tensor:
        """From the same activation on all ranks to this rank's part of the sequence."""
        if self.size == 1 or not self.sequence_parallel:
            return hidden
        return _Move.apply(hidden, self.own_part, self.gather_sequence)

    def shared(self, parameter: Tensor | None) -> Tensor | None:
        """A replicated parameter used on a part of the sequence: its gradients must be summed."""
        if parameter is None or self.size == 1 or not self.sequence_parallel:
            return parameter
        return _Move.apply(parameter, _keep, self.summed)

    def over_heads(self) -> TensorParallel:
        """For `shared` parameters inside a parallel region, where each rank has its own heads.

        Their gradients are sums over the group too, with and without sequence parallelism.
        """
        return replace(self, sequence_parallel=True)

    def total(self, part: Tensor) -> Tensor:
        """Sum of all ranks' parts inside a parallel region, where each uses it differently."""
        return part if self.size == 1 else _Move.apply(part, self.summed, self.summed)

    def all_reduce(self, tensor: Tensor, op: Any = dist.ReduceOp.SUM) -> Tensor:
        """Reduces in place over the group; no gradient flows through it."""
        if self.size > 1:
            dist.all_reduce(tensor, op=op, group=self.group)
        return tensor

    @contextmanager
    def own_random_state(self) -> Iterator[None]:
        """Random numbers that differ between the ranks of the group, for dropout on their parts.

        Outside, ranks of a group have the same random state, so that dropout on whole tensors
        agrees. The seed comes from that state: recomputed activations see the same masks.
        """
        if self.size == 1:
            yield
            return
        seed = int(torch.randint(2**62, (1,)))  # CPU generator: no wait for a device
        with torch.random.fork_rng():
            torch.manual_seed(seed + self.rank)
            yield

    def residual_random_state(self) -> Any:
        """For dropout on the residual stream, which only sequence parallelism divides."""
        single = TensorParallel() if not self.sequence_parallel else self
        return single.own_random_state()

    def summed(self, tensor: Tensor) -> Tensor:
        """Sum over the group, in a new tensor."""
        return self.all_reduce(tensor.contiguous().clone())

    def gather_sequence(self, hidden: Tensor) -> Tensor:
        """(b, s / size, h) of every rank -> (b, s, h), without gradients."""
        parts = [torch.empty_like(hidden) for _ in range(self.size)]
        dist.all_gather(parts, hidden.contiguous(), group=self.group)
        return torch.cat(parts, dim=1)

    def own_part(self, hidden: Tensor) -> Tensor:
        """This rank's part of a whole sequence, (b, s, h) -> (b, s / size, h)."""
        return hidden.chunk(self.size, dim=1)[self.rank].contiguous()

    def reduce_scatter_sequence(self, partial: Tensor) -> Tensor:
        """Sums (b, s, h) over the group and returns this rank's part of the sequence."""
        # gloo has no reduce-scatter: sum all of it, keep a part
        return self.own_part(self.summed(partial))


SINGLE = TensorParallel()
"""No tensor parallelism."""


class _Move(torch.autograd.Function):
    """An operation on activations, and its adjoint for gradients."""

    @staticmethod
    def forward(ctx, tensor: Tensor, move: Move, adjoint: Move) -> Tensor:
        ctx.adjoint = adjoint
        return move(tensor)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        return ctx.adjoint(grads[0]), None, None


def _keep(tensor: Tensor) -> Tensor:
    return tensor.view_as(tensor)
