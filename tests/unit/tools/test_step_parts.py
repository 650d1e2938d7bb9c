"""Attribution of a profiled step to its parts."""

import pytest
import torch
import torch.nn.functional as F

from megatron.model import loss, positional_embeddings
from megatron.model.cpu import causal_attention
from tools.benchmark import step_parts


def plain_step() -> None:
    """A step of a network with one of each kind of operator."""
    torch.manual_seed(0)
    first, second = (torch.nn.Linear(32, 32) for _ in range(2))
    norm, output = torch.nn.LayerNorm(32), torch.nn.Linear(32, 100)
    modules = torch.nn.ModuleList([first, second, norm, output])
    optimizer = torch.optim.AdamW(modules.parameters(), fused=True)
    rows = torch.randn(2, 4, 16, 32).bfloat16().float()
    rows = F.gelu(first(norm(rows)))
    rows = F.scaled_dot_product_attention(rows, rows, second(rows), is_causal=True)
    logits = output(rows).flatten(0, 2)
    F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long)).backward()
    with torch.profiler.record_function(step_parts.OPTIMIZER_RANGE):
        torch.cat([weight.grad.flatten() for weight in modules.parameters()])
        optimizer.step()


def test_each_part_gets_its_operators():
    parts = step_parts.seconds_by_part(plain_step, steps=2)
    assert tuple(parts) == step_parts.PARTS
    without = {step_parts.ROTATION, step_parts.ATTENTION}  # torch's attention is one operator
    empty = {part for part, seconds in parts.items() if not seconds}
    assert empty <= without


def test_gradients_belong_to_the_part_of_their_function():
    names = ["aten::mul", "_RotateInPlaceBackward", "autograd::engine::evaluate_function: _Rotate"]
    assert step_parts.part_of(names) == step_parts.ROTATION
    assert step_parts.part_of(["aten::bmm", "_CausalAttentionBackward"]) == step_parts.ATTENTION
    assert step_parts.part_of(["aten::mm", "_ChunkedCrossEntropy"]) == step_parts.PRODUCTS
    accumulated = ["aten::copy_", "torch::autograd::AccumulateGrad", step_parts.OPTIMIZER_RANGE]
    assert step_parts.part_of(accumulated) == step_parts.ENGINE_COPIES
    inside = [
        "aten::copy_",
        "autograd::engine::evaluate_function: ToCopyBackward0",
        *accumulated[2:],
    ]
    assert step_parts.part_of(inside) == step_parts.CASTS


@pytest.mark.parametrize(
    "function",
    [
        causal_attention._CausalAttention,
        loss._ChunkedCrossEntropy,
        positional_embeddings._RotateInPlace,
    ],
)
def test_our_functions_have_the_names_that_the_parts_know(function):
    assert function.__name__ in step_parts._AUTOGRAD_FUNCTIONS


def test_the_table_adds_up():
    parts = dict.fromkeys(step_parts.PARTS, 0.001)
    lines = step_parts.table({"ours": parts}).splitlines()
    assert len(lines) == len(step_parts.PARTS) + 2
    assert lines[-1].split() == ["step", f"{len(parts):.1f}", "(100%)"]
