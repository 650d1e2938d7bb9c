import math

import pytest
import torch

from megatron.model.init_functions import INIT_METHODS, resolve_init_method

LAYERS, HIDDEN, STD = 12, 256, 0.02

EXPECTED_STD = {
    "normal": STD,
    "scaled_normal": STD / math.sqrt(2 * LAYERS),
    "single_residual_scaled_normal": STD / math.sqrt(LAYERS),
    "small_init": math.sqrt(2 / (5 * HIDDEN)),
    "wang_init": 2 / (LAYERS * math.sqrt(HIDDEN)),
    "xavier_uniform": math.sqrt(2 / (2 * HIDDEN)),
    "xavier_normal": math.sqrt(2 / (2 * HIDDEN)),
    "orthogonal": math.sqrt(2.0) / math.sqrt(HIDDEN),
    "scaled_orthogonal": math.sqrt(2.0 / LAYERS) / math.sqrt(HIDDEN),
}


def test_every_method_has_an_expectation_here():
    assert EXPECTED_STD.keys() == INIT_METHODS.keys()


@pytest.mark.parametrize("name", EXPECTED_STD)
def test_values_have_the_documented_standard_deviation(name):
    method = resolve_init_method(name, std=STD, num_layers=LAYERS, hidden_size=HIDDEN)
    tensor = torch.empty(HIDDEN, HIDDEN)
    method(tensor, torch.Generator().manual_seed(5))
    assert tensor.std().item() == pytest.approx(EXPECTED_STD[name], rel=0.02)
    assert abs(tensor.mean().item()) < 3 * EXPECTED_STD[name] / HIDDEN


@pytest.mark.parametrize(
    ("name", "gain"),
    [("orthogonal", math.sqrt(2.0)), ("scaled_orthogonal", math.sqrt(2.0 / LAYERS))],
)
def test_orthogonal_rows_are_orthogonal(name, gain):
    method = resolve_init_method(name, std=STD, num_layers=LAYERS, hidden_size=HIDDEN)
    tensor = torch.empty(16, HIDDEN)
    method(tensor, torch.Generator().manual_seed(5))
    torch.testing.assert_close(tensor @ tensor.t(), gain**2 * torch.eye(16), rtol=0, atol=1e-5)
