"""Causal attention of a CPU in bfloat16 against torch's own function in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron.model.attend import attend
from megatron.model.attention_span import EVERYTHING
from megatron.model.cpu import causal_attention as module
from megatron.model.forward_context import ForwardContext

SETTINGS = getattr(torch.backends.mkldnn, "matmul", None)
pytestmark = pytest.mark.skipif(
    not hasattr(SETTINGS, "fp32_precision"), reason="torch cannot choose oneDNN's precision"
)


def inputs(*, heads: int, groups: int, length: int, scale: float = 1.0) -> list[Tensor]:
    """Query, key, value and gradient, in the layout that a fused projection gives them."""
    draw = torch.Generator().manual_seed(7)
    shapes = [(2, length, count, 8) for count in (heads, groups, groups, heads)]
    found = [torch.randn(shape, generator=draw).bfloat16().transpose(1, 2) for shape in shapes]
    return [found[0] * scale, *found[1:]]


def results(function, tensors: list[Tensor]) -> list[Tensor]:
    """The output and the gradients of query, key and value."""
    *leaves, grad = (tensor.detach() for tensor in tensors)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    output = function(*leaves)
    output.backward(grad)
    return [output.detach(), *(leaf.grad for leaf in leaves)]


def of_torch(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


def errors(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    return [
        float((got.double() - want).norm() / want.norm())
        for got, want in zip(found, exact, strict=True)
    ]


@pytest.mark.parametrize("scale", [1.0, 20.0])
@pytest.mark.parametrize(
    ("heads", "groups", "length"),
    [(4, 4, 512), (4, 2, 300), (3, 1, 257), (2, 2, 5)],
)
def test_it_is_as_exact_as_torchs_function(heads, groups, length, scale):
    tensors = inputs(heads=heads, groups=groups, length=length, scale=scale)
    exact = results(of_torch, [tensor.double() for tensor in tensors])
    ours = errors(results(module.causal_attention, tensors), exact)
    theirs = errors(results(of_torch, tensors), exact)
    assert all(our < max(2 * their, 0.005) for our, their in zip(ours, theirs, strict=True))


def test_heads_are_cut_into_blocks_without_a_difference(monkeypatch):
    tensors = inputs(heads=4, groups=4, length=300)
    whole = results(module.causal_attention, tensors)
    monkeypatch.setattr(module, "_SCORES", 1)
    for got, want in zip(results(module.causal_attention, tensors), whole, strict=True):
        torch.testing.assert_close(got, want)


def test_products_outside_keep_their_precision():
    before = SETTINGS.fp32_precision
    results(module.causal_attention, inputs(heads=1, groups=1, length=8))
    assert SETTINGS.fp32_precision == before


@pytest.mark.parametrize(
    ("dtype", "length", "dropout", "is_taken"),
    [
        (torch.bfloat16, 512, 0.0, True),
        (torch.bfloat16, 511, 0.0, False),
        (torch.bfloat16, 1025, 0.0, False),
        (torch.bfloat16, 512, 0.1, False),
        (torch.float32, 512, 0.0, False),
    ],
)
def test_it_replaces_torchs_function_only_where_it_is_faster(
    dtype, length, dropout, is_taken, monkeypatch
):
    calls = []
    monkeypatch.setattr(module, "_WINS", True)
    monkeypatch.setattr(
        "megatron.model.attend.causal_attention",
        lambda *tensors: calls.append(1) or module.causal_attention(*tensors),
    )
    query, key, value, _ = (tensor.to(dtype) for tensor in inputs(heads=2, groups=1, length=length))
    context = ForwardContext(angles=None, bias=None, is_causal=True, is_whole=True)
    attend(query, key, value, context, EVERYTHING, dropout=dropout)
    assert bool(calls) is is_taken
