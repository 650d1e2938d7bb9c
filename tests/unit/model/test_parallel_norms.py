"""Norms of queries and keys on two tensor-parallel ranks, which are threads of this process."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron.model.init_functions import initialize_parameters
from megatron.model.parameters import cut_shard, spec_of
from megatron.model.positional_embeddings import make_rotary
from megatron.model.transformer import TransformerLayer
from megatron.mpu.tensor_parallel import SINGLE, TensorParallel
from tests.unit.model.shapes import small_model

SIZE = 2


@dataclass
class Meeting:
    """Where the ranks exchange tensors."""

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(SIZE, timeout=20))
    tensors: dict[int, Tensor] = field(default_factory=dict)

    def exchange(self, rank: int, tensor: Tensor) -> list[Tensor]:
        self.tensors[rank] = tensor.detach().clone()
        self.barrier.wait()
        found = [self.tensors[other] for other in range(SIZE)]
        self.barrier.wait()
        return found


class ThreadParallel(TensorParallel):
    """A rank whose group is a `Meeting`."""

    def all_reduce(self, tensor: Tensor, op: Any = None) -> Tensor:
        return tensor.copy_(sum(self.group.exchange(self.rank, tensor)))

    def gather_sequence(self, hidden: Tensor) -> Tensor:
        return torch.cat(self.group.exchange(self.rank, hidden), dim=1)


def block(config: Any, tp: TensorParallel) -> TransformerLayer:
    """A block in float64, far from its first values."""
    layer = TransformerLayer(config, make_rotary(config), tp)
    initialize_parameters(layer, 3, tp_rank=tp.rank, dtype=torch.float64)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in layer.parameters():
            spec = spec_of(parameter)
            noise = torch.randn(spec.logical_shape, generator=generator, dtype=torch.float64)
            parameter.add_(cut_shard(noise, spec, tp.rank), alpha=0.3)
    return layer


def run(config: Any, tp: TensorParallel) -> tuple[Tensor, Tensor, TransformerLayer]:
    """Result and gradient of this rank's part of the sequence, and the block with gradients."""
    generator = torch.Generator().manual_seed(1)
    hidden, weights = torch.randn(2, 2, 6, 32, generator=generator, dtype=torch.float64)
    cut = tp.own_part if tp.sequence_parallel else lambda tensor: tensor
    layer, part = block(config, tp), cut(hidden).clone().requires_grad_()
    result = layer(part)
    (result * cut(weights)).sum().backward()
    assert part.grad is not None
    return result.detach(), part.grad, layer


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {"qk_norm": "head", "num_kv_heads": 2, "head_dim": 12, "norm": "rmsnorm"},
        {"qk_norm": "head", "use_bias_in_attn_output": False},
        {"qk_norm": "neox"},
        {"qk_norm": "neox", "norm": "rmsnorm"},
        {"qk_norm": "neox", "norm": "scalenorm", "norm_epsilon": 1e-8},
        {"qk_norm": "neox", "norm": "non_parametric_layernorm"},
    ],
    ids=lambda changes: " ".join(map(str, changes.values())),
)
def test_two_ranks_compute_the_result_and_the_gradients_of_one(changes, sequence_parallel):
    config, meeting = small_model(**changes), Meeting()
    want, want_grad, whole = run(config, SINGLE)

    def rank(number: int) -> Any:
        tp = ThreadParallel(SIZE, number, meeting, sequence_parallel)
        return tp, run(config, tp)

    with ThreadPoolExecutor(SIZE) as pool:
        ranks = list(pool.map(rank, range(SIZE)))
    for tp, (got, got_grad, layer) in ranks:
        cut = tp.own_part if sequence_parallel else lambda tensor: tensor
        torch.testing.assert_close(got, cut(want), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(got_grad, cut(want_grad), rtol=1e-9, atol=1e-9)
        for (name, mine), theirs in zip(layer.named_parameters(), whole.parameters(), strict=True):
            assert theirs.grad is not None
            expected = cut_shard(theirs.grad, spec_of(mine), tp.rank)
            torch.testing.assert_close(mine.grad, expected, rtol=1e-9, atol=1e-9, msg=name)
