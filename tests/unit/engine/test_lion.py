"""Lion against its formula, and 8-bit Adam where its package is not there."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch

from megatron.engine.lion import Lion
from megatron.neox_arguments import NeoXArgs, resolve
from megatron.neox_arguments.deepspeed_json import missing_optimizer_problem


def test_steps_follow_the_formula():
    generator = torch.Generator().manual_seed(2)
    start = torch.randn(3, 5, generator=generator)
    parameter = torch.nn.Parameter(start.clone())
    optimizer = Lion([parameter], lr=0.1, betas=(0.9, 0.8), weight_decay=0.5)
    expected, moment = start.clone(), torch.zeros(3, 5)
    for _ in range(4):
        gradient = torch.randn(3, 5, generator=generator)
        parameter.grad = gradient.clone()
        optimizer.step()
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * (0.9 * moment + 0.1 * gradient).sign()
        moment = 0.8 * moment + 0.2 * gradient
    torch.testing.assert_close(parameter.detach(), expected)
    torch.testing.assert_close(optimizer.state[parameter]["exp_avg"], moment)


def test_every_element_moves_by_the_learning_rate():
    parameter = torch.nn.Parameter(torch.zeros(4))
    parameter.grad = torch.tensor([1e-8, -3.0, 0.0, 1e8])
    Lion([parameter], lr=0.25).step()
    assert parameter.tolist() == [-0.25, 0.25, 0.0, -0.25]


def test_groups_have_their_own_decay_and_parameters_without_gradient_stay():
    one, other, unused = (torch.nn.Parameter(torch.ones(1)) for _ in range(3))
    one.grad, other.grad = torch.zeros(1), torch.zeros(1)
    groups: list[dict[str, Any]] = [
        {"params": [one, unused], "weight_decay": 0.5},
        {"params": [other], "weight_decay": 0.0},
    ]
    Lion(groups, lr=0.5).step()
    assert (one.item(), other.item(), unused.item()) == (0.75, 1.0, 1.0)


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_a_missing_package_of_the_8_bit_optimizer_is_named():
    sizes = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 1}
    values = {**sizes, "max_position_embeddings": 8, "train_micro_batch_size_per_gpu": 1}
    args = {**values, "train_iters": 5, "use_bnb_optimizer": True}
    problem = missing_optimizer_problem(resolve(NeoXArgs.from_dict(args), world_size=1))
    assert problem is not None
    assert "bitsandbytes is not installed" in problem
