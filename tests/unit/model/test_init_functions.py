import math

import numpy as np
import pytest
import torch
from torch import nn

from megatron.model.init_functions import (
    INIT_METHODS,
    fill_range,
    initialize_parameters,
    resolve_init_method,
)
from megatron.model.parameters import InitMethod, cut_shard, make_parameter, spec_of
from megatron.model.random_numbers import NumberStream
from megatron.model.shard_blocks import Rectangle

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


def draw(method: InitMethod, rows: int, columns: int) -> np.ndarray:
    whole = Rectangle(0, rows, 0, columns, columns)
    return method(NumberStream(5, "a"), (rows, columns), whole)


def test_every_method_has_an_expectation_here():
    assert EXPECTED_STD.keys() == INIT_METHODS.keys()


@pytest.mark.parametrize("name", EXPECTED_STD)
def test_values_have_the_documented_standard_deviation(name):
    method = resolve_init_method(name, std=STD, num_layers=LAYERS, hidden_size=HIDDEN)
    tensor = torch.from_numpy(draw(method, HIDDEN, HIDDEN))
    assert tensor.std().item() == pytest.approx(EXPECTED_STD[name], rel=0.02)
    assert abs(tensor.mean().item()) < 3 * EXPECTED_STD[name] / HIDDEN


@pytest.mark.parametrize(
    ("name", "gain"),
    [("orthogonal", math.sqrt(2.0)), ("scaled_orthogonal", math.sqrt(2.0 / LAYERS))],
)
def test_orthogonal_rows_are_orthogonal(name, gain):
    method = resolve_init_method(name, std=STD, num_layers=LAYERS, hidden_size=HIDDEN)
    tensor = torch.from_numpy(draw(method, 16, HIDDEN))
    torch.testing.assert_close(tensor @ tensor.t(), gain**2 * torch.eye(16), rtol=0, atol=1e-5)


SHAPES = {
    # (logical shape, dimension that is cut, shapes of a shard for 1, 2 and 4 ranks)
    "rows": ((21, 6), 0, [(24, 6), (12, 6), (6, 6)]),
    "columns": ((6, 20), 1, [(6, 20), (6, 10), (6, 5)]),
    "fused": ((2, 8, 5), 1, [(2, 8, 5), (2, 4, 5), (2, 2, 5)]),
    "replicated": ((3, 5), None, [(3, 5), (3, 5), (3, 5)]),
}


class One(nn.Module):
    def __init__(self, kind: str, method: str, size: int) -> None:
        super().__init__()
        logical, dim, shards = SHAPES[kind]
        self.weight = make_parameter(
            *shards[size],
            init_method=resolve_init_method(method, std=STD, num_layers=2, hidden_size=6),
            logical_shape=logical,
            tp_dim=dim,
        )


@pytest.mark.parametrize("method", INIT_METHODS)
@pytest.mark.parametrize("kind", SHAPES)
def test_every_shard_and_every_range_of_it_is_a_part_of_the_whole(kind, method):
    whole = One(kind, method, 0)
    initialize_parameters(whole, 3)
    logical = whole.weight.detach()[tuple(map(slice, SHAPES[kind][0]))]
    for size, ranks in ((1, 2), (2, 4)):
        for rank in range(ranks):
            part = One(kind, method, size)
            initialize_parameters(part, 3, tp_rank=rank)
            assert torch.equal(part.weight, cut_shard(logical, spec_of(part.weight), rank))
            flat = part.weight.detach().flatten()
            for offset, length in ((0, 1), (3, 7), (1, len(flat) - 1)):
                drawn = torch.empty(length)
                numbers = NumberStream(3, "weight")
                fill_range(drawn, spec_of(part.weight), numbers, tp_rank=rank, offset=offset)
                assert torch.equal(drawn, flat[offset : offset + length])


def test_a_parameter_keeps_its_identity_and_its_facts_when_it_gets_memory():
    module = One("rows", "normal", 0)
    weight, spec = module.weight, spec_of(module.weight)
    weight.requires_grad_(False)
    assert weight.is_meta
    initialize_parameters(module, 3, dtype=torch.bfloat16)
    assert module.weight is weight
    assert spec_of(weight) is spec
    assert weight.dtype == torch.bfloat16
    assert not weight.requires_grad
