"""Facts about each parameter: its shape in every layout, initial value, weight decay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from megatron.model.random_numbers import NumberStream
from megatron.model.shard_blocks import Block, Rectangle, blocks_of_range

__all__ = [
    "DTYPES",
    "InitMethod",
    "ParameterSpec",
    "allocate",
    "blocks_of_shard",
    "cut_shard",
    "extremes",
    "make_parameter",
    "spec_of",
]

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bfloat16": torch.bfloat16}
"""Types of the parameters by ``precision`` of the configuration."""

InitMethod = Callable[[NumberStream, tuple[int, int], Rectangle], np.ndarray]
"""(random numbers, shape of the whole matrix, a part of it) -> the initial values of this part,
(rows, columns) float32."""


@dataclass(frozen=True)
class ParameterSpec:
    """Facts that initialisation, checkpoints and the optimizer need."""

    init_method: InitMethod
    """Computes initial values of a part of the logical tensor."""
    logical_shape: tuple[int, ...]
    """Shape without vocabulary padding and without sharding."""
    tp_dim: int | None
    """Dimension that tensor parallelism cuts; None for a replicated parameter."""
    shard_shape: tuple[int, ...]
    """Shape on a rank, vocabulary padding included; stored because ZeRO 3 empties the parameter."""
    has_weight_decay: bool
    """Whether weight decay applies; False for biases and norms."""


def make_parameter(
    *shape: int,
    init_method: InitMethod,
    logical_shape: tuple[int, ...] | None = None,
    tp_dim: int | None = None,
    has_weight_decay: bool = True,
) -> nn.Parameter:
    """Makes a parameter of ``shape`` on this rank, with its `ParameterSpec` and without memory.

    ``logical_shape`` defaults to ``shape``. `allocate` gives it memory when it is known how much of
    it this rank keeps, in which precision, and where its values come from.
    """
    parameter = nn.Parameter(torch.empty(*shape, device="meta"))
    parameter.spec = ParameterSpec(  # type: ignore[attr-defined]
        init_method, tuple(logical_shape or shape), tp_dim, shape, has_weight_decay
    )
    # DeepSpeed counts the squares of parameters without this mark once per tensor group
    parameter.tensor_model_parallel = tp_dim is not None  # type: ignore[attr-defined]
    return parameter


def spec_of(parameter: nn.Parameter) -> ParameterSpec:
    """The spec that `make_parameter` attached."""
    return parameter.spec  # type: ignore[attr-defined]


def allocate(
    parameter: nn.Parameter,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> None:
    """Gives a parameter from `make_parameter` its memory, filled with zeros; others keep theirs."""
    if not parameter.is_meta:
        return
    real = nn.Parameter(
        torch.zeros(parameter.shape, dtype=dtype, device=device),
        requires_grad=parameter.requires_grad,
    )
    vars(real).update(vars(parameter))
    torch.utils.swap_tensors(parameter, real)  # whoever shares the parameter has it still


def blocks_of_shard(
    spec: ParameterSpec, tp_rank: int, *, offset: int, length: int
) -> Iterator[Block]:
    """`blocks_of_range` of a parameter."""
    return blocks_of_range(
        spec.logical_shape,
        spec.shard_shape,
        spec.tp_dim,
        tp_rank=tp_rank,
        offset=offset,
        length=length,
    )


def cut_shard(logical: Tensor, spec: ParameterSpec, tp_rank: int) -> Tensor:
    """The part of a logical tensor that belongs to a tensor-parallel rank; padding is zero."""
    dim = 0 if spec.tp_dim is None else spec.tp_dim
    length = spec.shard_shape[dim]
    start = 0 if spec.tp_dim is None else tp_rank * length
    known = max(0, min(length, logical.shape[dim] - start))
    if known == length:
        return logical.narrow(dim, start, length)
    shard = logical.new_zeros(spec.shard_shape)
    if known:
        shard.narrow(dim, 0, known).copy_(logical.narrow(dim, start, known))
    return shard


def extremes(tensor: Tensor) -> Tensor:
    """Smallest and largest element, (2,); a nan anywhere makes both nan.

    They show whether a tensor is finite, ten times as fast as the mask of ``isfinite``.
    """
    return torch.stack(torch.aminmax(tensor))
