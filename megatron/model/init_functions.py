"""Initial values of parameters, the same on every parallel layout.

Each parameter has its own sequence of random numbers, which (seed, name) decides, and each element
its own place in it: the place in the logical (unsharded) parameter. So neither the number of ranks
nor the order in which modules are built changes any initial value, and a rank draws only the values
of the elements that it has. Only an orthogonal matrix is computed as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from megatron.model.parameters import (
    InitMethod,
    ParameterSpec,
    allocate,
    blocks_of_shard,
    spec_of,
)
from megatron.model.random_numbers import NumberStream
from megatron.model.shard_blocks import Rectangle
from megatron.sizing.model_shape import ModelShape

__all__ = [
    "INIT_METHODS",
    "fill_range",
    "init_methods",
    "initial_values",
    "initialize_parameters",
    "ones",
    "resolve_init_method",
    "uniform",
    "zeros",
]

_PIECE = 1 << 24
"""Elements that are drawn before they are copied to their place: 64 MiB."""


def zeros(numbers: NumberStream, shape: tuple[int, int], part: Rectangle) -> np.ndarray:
    """Biases."""
    return np.zeros((part.num_rows, part.num_columns), dtype=np.float32)


def ones(numbers: NumberStream, shape: tuple[int, int], part: Rectangle) -> np.ndarray:
    """Scales of norms."""
    return np.ones((part.num_rows, part.num_columns), dtype=np.float32)


def uniform(limit: float) -> InitMethod:
    """Uniform numbers in [-limit, limit)."""

    def values(numbers: NumberStream, shape: tuple[int, int], part: Rectangle) -> np.ndarray:
        return _uniform(numbers, part, limit)

    return values


def _uniform(numbers: NumberStream, part: Rectangle, limit: float) -> np.ndarray:
    drawn = numbers.uniform(part)
    drawn *= np.float32(2.0 * limit)
    drawn -= np.float32(limit)
    return drawn


def _scaled(numbers: NumberStream, part: Rectangle, std: float) -> np.ndarray:
    drawn = numbers.normal(part)
    drawn *= np.float32(std)
    return drawn


def _normal(std: float) -> InitMethod:
    def values(numbers: NumberStream, shape: tuple[int, int], part: Rectangle) -> np.ndarray:
        return _scaled(numbers, part, std)

    return values


def _xavier_uniform(numbers: NumberStream, shape: tuple[int, int], part: Rectangle) -> np.ndarray:
    return _uniform(numbers, part, math.sqrt(6.0 / sum(shape)))


def _xavier_normal(numbers: NumberStream, shape: tuple[int, int], part: Rectangle) -> np.ndarray:
    return _scaled(numbers, part, math.sqrt(2.0 / sum(shape)))


def _orthogonal(gain: float) -> InitMethod:
    def values(numbers: NumberStream, shape: tuple[int, int], part: Rectangle) -> np.ndarray:
        whole = numbers.once("orthogonal", lambda: _orthogonal_matrix(numbers, shape, gain))
        rows = whole.reshape(-1, part.row_length)[part.first_row : part.first_row + part.num_rows]
        columns: np.ndarray = rows[:, part.first_column : part.first_column + part.num_columns]
        return columns

    return values


def _orthogonal_matrix(numbers: NumberStream, shape: tuple[int, int], gain: float) -> np.ndarray:
    """Q of a normal matrix, with the signs that make it unique (Mezzadri 2007, math-ph/0609050)."""
    rows, columns = shape
    drawn = torch.from_numpy(numbers.normal(Rectangle(0, rows, 0, columns, columns)))
    q, r = torch.linalg.qr(drawn if rows >= columns else drawn.T)
    q = q * r.diagonal().sign()
    matrix: np.ndarray = (gain * (q if rows >= columns else q.T)).contiguous().numpy()
    return matrix


INIT_METHODS: dict[str, Callable[[float, int, int], InitMethod]] = {
    # name: (init_method_std, num_layers L, hidden_size h) -> method
    "normal": lambda std, layers, hidden: _normal(std),
    "scaled_normal": lambda std, layers, hidden: _normal(std / math.sqrt(2.0 * layers)),
    "single_residual_scaled_normal": lambda std, layers, hidden: _normal(std / math.sqrt(layers)),
    "orthogonal": lambda std, layers, hidden: _orthogonal(math.sqrt(2.0)),
    "scaled_orthogonal": lambda std, layers, hidden: _orthogonal(math.sqrt(2.0 / layers)),
    "xavier_uniform": lambda std, layers, hidden: _xavier_uniform,
    "xavier_normal": lambda std, layers, hidden: _xavier_normal,
    # Nguyen and Salazar 2019, arXiv:1910.05895
    "small_init": lambda std, layers, hidden: _normal(math.sqrt(2.0 / (5.0 * hidden))),
    # Wang and Komatsuzaki 2021, mesh-transformer-jax
    "wang_init": lambda std, layers, hidden: _normal(2.0 / (layers * math.sqrt(hidden))),
}
"""GPT-NeoX's names for ``init_method`` and ``output_layer_init_method``."""


def resolve_init_method(name: str, *, std: float, num_layers: int, hidden_size: int) -> InitMethod:
    """Looks up one of `INIT_METHODS`; unknown names are refused by the configuration."""
    return INIT_METHODS[name](std, num_layers, hidden_size)


def init_methods(config: ModelShape) -> tuple[InitMethod, InitMethod]:
    """``init_method``, and ``output_layer_init_method`` for layers that write into the residual."""
    first, output = (
        resolve_init_method(
            name,
            std=config.init_method_std,
            num_layers=config.num_layers,
            hidden_size=config.hidden_size,
        )
        for name in (config.init_method, config.output_layer_init_method)
    )
    return first, output


def fill_range(
    flat: Tensor, spec: ParameterSpec, numbers: NumberStream, *, tp_rank: int, offset: int
) -> None:
    """Writes initial values into a range of a flattened shard; padding becomes zero.

    Args:
        flat: The elements from ``offset`` on, (n,), of any precision and on any device.
        spec: The parameter.
        numbers: Its random numbers.
        tp_rank: Number of the shard.
        offset: First element in the flattened shard.
    """
    for first in range(0, flat.numel(), _PIECE):
        place = flat[first : first + _PIECE]
        place.copy_(initial_values(spec, numbers, tp_rank, offset + first, place.numel()))


def initial_values(
    spec: ParameterSpec, numbers: NumberStream, tp_rank: int, offset: int, length: int
) -> Tensor:
    """Initial values of the elements [offset, offset + length) of a flattened shard, float32."""
    values = np.zeros(length, dtype=np.float32)
    # every method treats a fused gated projection (2, f, h) as one matrix (2f, h)
    shape = (math.prod(spec.logical_shape[:-1]), spec.logical_shape[-1])
    for block in blocks_of_shard(spec, tp_rank, offset=offset, length=length):
        part = block.source
        size = part.num_rows * block.width
        place = values[block.start : block.start + size].reshape(part.num_rows, block.width)
        place[:, : part.num_columns] = spec.init_method(numbers, shape, part)
    return torch.from_numpy(values)


def initialize_parameters(
    module: nn.Module,
    seed: int,
    *,
    tp_rank: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> None:
    """Allocates every parameter of ``module``, and fills it from (seed, name).

    Its `ParameterSpec` define how a parameter is filled.
    """
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            allocate(parameter, dtype=dtype, device=device)
            numbers = NumberStream(seed, name)
            fill_range(parameter.view(-1), spec_of(parameter), numbers, tp_rank=tp_rank, offset=0)
