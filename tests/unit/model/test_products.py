"""Products through oneDNN are those of torch, with torch's gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from megatron.model.cpu import products
from megatron.model.cpu.products import linear, product, transposed_product


@pytest.fixture(autouse=True, params=[False, True], ids=["plain", "oneDNN"])
def _one_way_for_all_sizes(monkeypatch, request):
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "_SMALLEST", 1)
    monkeypatch.setattr(products, "_WINS", request.param)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=dtype)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("leading", [(6,), (2, 3), (2, 1, 3)])
@pytest.mark.parametrize("width", [5, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_linear_layer_and_its_gradients_are_torchs(has_bias, leading, width, dtype):
    operands = [random(*leading, 8, dtype=dtype), random(width, 8, dtype=dtype)]
    operands += [random(width, dtype=dtype)] if has_bias else []
    grad = random(*leading, width, dtype=dtype)
    results = []
    for function in (linear, F.linear):
        inputs = [t.clone().requires_grad_() for t in operands]
        outcome = function(*inputs)
        results.append([outcome, *torch.autograd.grad(outcome, inputs, grad)])
    for got, want in zip(*results, strict=True):
        assert got.dtype == want.dtype
        assert got.is_contiguous()
        torch.testing.assert_close(got, want)


def test_operands_that_need_no_gradient_get_none():
    features, weight, bias = random(3, 8), random(5, 8), random(5).requires_grad_()
    linear(features, weight, bias).sum().backward()
    assert features.grad is None
    assert weight.grad is None
    assert torch.equal(bias.grad, torch.full((5,), 3.0))


def test_a_gradient_that_is_one_number_seen_often_is_accepted():
    features, weight = random(4, 8).requires_grad_(), random(5, 8).requires_grad_()
    linear(features, weight).sum().backward()
    torch.testing.assert_close(features.grad, weight.detach().sum(0).expand(4, 8))


def test_the_result_may_be_changed_in_place_as_a_view():
    features, weight = random(2, 3, 8).requires_grad_(), random(6, 8)
    outcome = linear(features, weight).view(2, 3, 2, 3)
    outcome[..., 0].zero_()
    outcome.sum().backward()
    kept = weight.view(2, 3, 8)[:, 1:].sum(dim=(0, 1))
    torch.testing.assert_close(features.grad, kept.expand(2, 3, 8))


@pytest.mark.parametrize("is_transposed", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 4])
def test_a_product_with_a_view_equals_the_plain_product(is_transposed, rows):
    left, weight = random(rows, 8), random(8, 5).t() if is_transposed else random(5, 8)
    torch.testing.assert_close(product(left, weight), left @ weight.t())


def test_a_rank_without_a_token_of_the_vocabulary_gets_an_empty_product():
    assert product(random(4, 8), torch.empty(0, 8)).shape == (4, 0)
    assert transposed_product(torch.empty(4, 0), random(4, 8)).shape == (0, 8)


@pytest.mark.parametrize("widths", [(3, 7), (7, 3), (4, 4)])
def test_a_transposed_product_equals_the_plain_product(widths):
    left, right = (random(6, width) for width in widths)
    torch.testing.assert_close(transposed_product(left, right), left.t() @ right)
