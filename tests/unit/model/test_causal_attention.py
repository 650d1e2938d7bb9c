"""Attention in tiles against scaled_dot_product_attention."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from megatron.model.cpu.causal_attention import prefers_tiles, tiled_causal_attention


def projection(*, length: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, length, 3, 3, 8, generator=generator, dtype=dtype).requires_grad_()


def plain_attention(fused: Tensor) -> Tensor:
    query, key, value = (part.transpose(1, 2) for part in fused.unbind(dim=3))
    return F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)


def output_and_gradient(attend, fused: Tensor) -> tuple[Tensor, Tensor]:
    output = attend(fused)
    weight = torch.linspace(-1.0, 1.0, output.numel(), dtype=output.dtype).view(output.shape)
    (gradient,) = torch.autograd.grad((output * weight).sum(), fused)
    return output, gradient


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("length", [4, 12, 256, 516])
def test_tiles_change_neither_the_result_nor_the_gradient(length, dtype, tolerance):
    fused = projection(length=length, dtype=dtype)
    expected = output_and_gradient(plain_attention, fused)
    for tiled, plain in zip(
        output_and_gradient(tiled_causal_attention, fused), expected, strict=True
    ):
        torch.testing.assert_close(tiled, plain, rtol=0, atol=tolerance * plain.abs().max().item())


def test_the_gradient_is_the_derivative():
    fused = projection(length=8, dtype=torch.float64)
    assert torch.autograd.gradcheck(tiled_causal_attention, fused[:1, :, :1, :, :2])


def test_large_scores_neither_overflow_nor_lose_the_later_tiles():
    fused = (projection(length=16).detach() * 10).requires_grad_()
    tiled = output_and_gradient(tiled_causal_attention, fused)
    plain = output_and_gradient(plain_attention, fused)
    for one, other in zip(tiled, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * other.abs().max().item())


def test_two_runs_are_bitwise_alike():
    fused = projection(length=256)
    first, second = (output_and_gradient(tiled_causal_attention, fused) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_recomputed_pass_gives_the_same_gradient():
    fused = projection(length=256)

    def recomputed(fused: Tensor) -> Tensor:
        return checkpoint(tiled_causal_attention, fused, use_reentrant=True)

    outputs: list[Tensor | None] = []
    for attend in (tiled_causal_attention, recomputed):
        fused.grad = None
        attend(fused).square().sum().backward()
        outputs.append(fused.grad)
    first, second = outputs
    assert first is not None
    assert second is not None
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("length", "slots", "dtype", "dropout", "expected"),
    [
        (512, 3, torch.float32, 0.0, True),
        (512, 3, torch.float64, 0.0, True),
        (128, 3, torch.float32, 0.0, False),
        (2048, 3, torch.float32, 0.0, False),
        (511, 3, torch.float32, 0.0, False),
        (512, 4, torch.float32, 0.0, False),
        (512, 3, torch.bfloat16, 0.0, False),
        (512, 3, torch.float32, 0.1, False),
    ],
)
def test_tiles_are_taken_only_where_they_win(length, slots, dtype, dropout, expected):
    fused = torch.empty(1, length, 2, slots, 8, dtype=dtype)
    assert prefers_tiles(fused, dropout=dropout) is expected
