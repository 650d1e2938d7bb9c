"""The norm that clips where DeepSpeed does not: what counts, once, and to how many digits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from megatron.engine import gradient_norm
from megatron.engine.gradient_norm import GradientClipper, clips_itself, sum_of_squares
from megatron.model.init_functions import zeros
from megatron.model.parameters import allocate, make_parameter
from megatron.mpu import RankGrid, Topology


class Module(nn.Module):
    """A part of a matrix with gradient (3, 4), a bias of 12, a tied copy of 84, one without."""

    def __init__(self) -> None:
        super().__init__()
        self.part = make_parameter(2, init_method=zeros, tp_dim=0)
        self.bias = make_parameter(1, init_method=zeros, has_weight_decay=False)
        self.copy = make_parameter(1, init_method=zeros, tp_dim=0)
        self.copy.ds_pipe_replicated = True
        self.unused = make_parameter(1, init_method=zeros)
        for parameter in self.parameters():
            allocate(parameter)
        self.part.grad = torch.tensor([3.0, 4.0])
        self.bias.grad = torch.tensor([12.0])
        self.copy.grad = torch.tensor([84.0])


def clip(limit: float, *, model_rank: int = 0, replica_group: Any = None) -> tuple[Module, float]:
    """(module after clipping, norm) on a rank of two tensor-parallel ones."""
    module = Module()
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    engine: Any = SimpleNamespace(module=module, optimizer=optimizer)
    topology = Topology(RankGrid(1, 1, 2), model_rank, None, None, replica_group)
    clipper = GradientClipper(engine, topology, limit)
    optimizer.step()
    assert clipper.norm is not None
    return module, clipper.norm.item()


def test_tied_copies_and_the_replicas_of_other_ranks_do_not_count():
    assert clip(0.0)[1] == 13.0  # 9 + 16 + 144
    assert clip(0.0, model_rank=1)[1] == 5.0


@pytest.mark.parametrize(("limit", "factor"), [(0.0, 1.0), (26.0, 1.0), (13.1, 1.0), (6.5, 0.5)])
def test_all_gradients_are_scaled_by_one_factor_and_only_downward(limit, factor):
    module, norm = clip(limit)
    assert norm == 13.0
    for parameter, gradient in (
        *((module.part, [3.0, 4.0]), (module.bias, [12.0])),
        (module.copy, [84.0]),  # all copies take the same step
    ):
        assert parameter.grad.tolist() == pytest.approx([factor * g for g in gradient])


def test_squares_are_added_over_the_ranks_of_a_replica(monkeypatch):
    groups = []

    def all_reduce(square: torch.Tensor, group: Any) -> None:
        groups.append(group)
        square += 25.0  # of the other rank, whose bias does not count

    monkeypatch.setattr(gradient_norm.dist, "all_reduce", all_reduce)
    module, norm = clip(1.0, replica_group="replica")
    assert norm == pytest.approx(194**0.5)
    assert module.part.grad.tolist() == pytest.approx([3 / 194**0.5, 4 / 194**0.5])
    assert groups == ["replica"]


@pytest.mark.parametrize("size", [1, 5, 1023, 1024, 1025, 3000])
def test_every_element_counts_once(size):
    squares = sum_of_squares(torch.full((size,), 2.0)).item()
    assert squares == pytest.approx(4.0 * size, rel=1e-6)


def test_a_large_tensor_keeps_the_digits_of_float32():
    tensor = torch.rand(3000, 1001, generator=torch.Generator().manual_seed(1))
    exact = tensor.double().square().sum().item()
    assert sum_of_squares(tensor).item() == pytest.approx(exact, rel=1e-7)


@pytest.mark.parametrize(
    ("stage", "precision", "expected"),
    [(0, "fp32", True), (1, "fp32", False), (3, "fp32", False), (1, "bfloat16", False)],
)
def test_deepspeed_clips_with_zero(stage, precision, expected):
    assert clips_itself(zero_stage=stage, precision=precision) is expected
