import math

import pytest
import torch
import torch.nn.functional as F

from megatron.model.cpu import matrix_products
from megatron.model.cpu.matrix_products import ProductSum, linear, linear_product, repeated_product


@pytest.fixture(autouse=True, params=[0, math.inf], ids=["MKL", "oneDNN"])
def _one_way_for_all_sizes(monkeypatch, request):
    monkeypatch.setattr(matrix_products, "_SMALLEST_LINEAR", 0)
    monkeypatch.setattr(matrix_products, "_ROWS_FOR_MKL", request.param)


def random(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=dtype)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("leading", [(6,), (2, 3), (2, 1, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_linear_layer_and_its_gradients_are_torchs(has_bias, leading, dtype):
    operands = [random(*leading, 8, dtype=dtype), random(5, 8, dtype=dtype)]
    operands += [random(5, dtype=dtype)] if has_bias else []
    grad = random(*leading, 5, dtype=dtype)
    results = []
    for function in (linear, F.linear):
        inputs = [t.clone().requires_grad_() for t in operands]
        outcome = function(*inputs)
        results.append([outcome, *torch.autograd.grad(outcome, inputs, grad)])
    for got, want in zip(*results, strict=True):
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want)


def test_operands_that_need_no_gradient_get_none():
    features, weight, bias = random(3, 8), random(5, 8), random(5).requires_grad_()
    linear(features, weight, bias).sum().backward()
    assert features.grad is None
    assert weight.grad is None
    assert torch.equal(bias.grad, torch.full((5,), 3.0))


def test_a_gradient_with_the_strides_of_a_sum_is_taken():
    features, weight = random(4, 8).requires_grad_(), random(5, 8).requires_grad_()
    linear(features, weight).sum().backward()  # its gradient is one number seen 20 times
    torch.testing.assert_close(features.grad, weight.detach().sum(0).expand(4, 8))


def test_the_result_may_be_changed_in_place_as_a_view():
    features, weight = random(2, 3, 8).requires_grad_(), random(6, 8)
    outcome = linear(features, weight).view(2, 3, 2, 3)
    outcome[..., 0].zero_()
    outcome.sum().backward()
    kept = weight.view(2, 3, 8)[:, 1:].sum(dim=(0, 1))
    torch.testing.assert_close(features.grad, kept.expand(2, 3, 8))


@pytest.mark.parametrize("is_transposed", [True, False])
def test_products_with_a_weight_equal_the_plain_product(is_transposed):
    rows, weight = random(4, 8), random(8, 5).t() if is_transposed else random(5, 8)
    expected = rows @ weight.t()
    torch.testing.assert_close(linear_product(rows, weight), expected)
    torch.testing.assert_close(repeated_product(weight, 4)(rows), expected)
    assert repeated_product(weight, 4)(rows[:0]).shape == (0, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sum_of_products_is_that_of_the_whole_matrices(dtype):
    left, right = random(6, 4), random(6, 3)
    total = ProductSum(dtype)
    for rows in (slice(0, 2), slice(2, 6)):
        total.add(left[rows], right[rows])
    assert total.total.dtype == dtype
    torch.testing.assert_close(total.total, (left.t() @ right).to(dtype))
