"""The gradient noise scale against problems whose noise scale is known."""

from __future__ import annotations

import pytest
import torch

from megatron.engine.noise_scale import NoiseScale
from tests.process_group import process_group_of_one

ONE = torch.ones((), dtype=torch.float64)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def group():
    with process_group_of_one():
        yield


def feed(scale: NoiseScale, *gradients: list[float]) -> None:
    for gradient in gradients:
        scale.take("weight", torch.tensor(gradient), ONE)
        scale.after_step(skipped=False)


def test_the_estimate_is_the_formula_of_two_batches():
    """Gradients (3, 0) and (1, 2) of 4 samples: |g|^2 = 7 on average, |G|^2 = |(2, 1)|^2 = 5."""
    scale = NoiseScale(4, 2, device=CPU)
    feed(scale, [3.0, 0.0])
    assert scale.value() is None
    feed(scale, [1.0, 2.0])
    true_square = (8 * 5 - 4 * 7) / (8 - 4)
    variance = (7 - 5) / (1 / 4 - 1 / 8)
    assert scale.value() == pytest.approx(variance / true_square)


@pytest.mark.parametrize(("batch_size", "num_batches"), [(4, 5), (32, 2)])
def test_gaussian_gradients_have_the_noise_scale_they_were_made_with(batch_size, num_batches):
    """A sample's gradient has the mean G and independent noise s in d components: d s^2 / |G|^2."""
    generator = torch.Generator().manual_seed(3)
    mean = torch.linspace(0.5, 1.5, 50)
    noise = 4.0
    scale = NoiseScale(batch_size, num_batches, device=CPU)
    for _ in range(400 * num_batches):
        samples = mean + noise * torch.randn(batch_size, 50, generator=generator)
        scale.take("a", samples.mean(0)[:20], ONE)
        scale.take("b", samples.mean(0)[20:], ONE)
        scale.after_step(skipped=False)
    expected = 50 * noise**2 / mean.square().sum().item()  # 14.8 samples
    assert scale.value() == pytest.approx(expected, rel=0.05)


def test_linear_regression_has_the_noise_scale_of_its_samples():
    """At a fixed weight the gradients of all samples are known, and so are tr(S) and |G|^2."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(1000, 6, generator=generator)
    y = x.sum(dim=1) + 0.5 * torch.randn(1000, generator=generator)
    weight = torch.zeros(6)
    gradients = 2 * (x @ weight - y).unsqueeze(1) * x
    expected = gradients.var(dim=0, correction=0).sum() / gradients.mean(dim=0).square().sum()
    scale = NoiseScale(8, 4, device=CPU, on_cpu=True)
    for _ in range(1600):
        chosen = torch.randint(1000, (8,), generator=generator)
        feed(scale, gradients[chosen].mean(0).tolist())
    assert scale.value() == pytest.approx(expected.item(), rel=0.1)


def test_clipping_is_undone():
    clipped, plain = NoiseScale(2, 2, device=CPU), NoiseScale(2, 2, device=CPU)
    for gradient, factor in ((torch.tensor([3.0, 1.0]), 2.0), (torch.tensor([2.0, 2.0]), 5.0)):
        plain.take("w", gradient, ONE)
        clipped.take("w", gradient / factor, ONE * factor)
        plain.after_step(skipped=False)
        clipped.after_step(skipped=False)
    assert plain.value() is not None
    assert clipped.value() == pytest.approx(plain.value())


def test_a_skipped_step_does_not_count():
    scale, other = NoiseScale(4, 2, device=CPU), NoiseScale(4, 2, device=CPU)
    feed(scale, [3.0, 0.0])
    scale.after_step(skipped=True)
    feed(scale, [1.0, 2.0])
    feed(other, [3.0, 0.0], [1.0, 2.0])
    assert scale.value() == other.value()


def test_without_a_visible_gradient_there_is_no_value():
    scale = NoiseScale(4, 2, device=CPU)
    feed(scale, [1.0, 0.0], [-1.0, 0.0])
    assert scale.value() is None
