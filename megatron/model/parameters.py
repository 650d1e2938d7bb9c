"""Facts about each parameter: its shape in every layout, initial value, weight decay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["InitMethod", "ParameterSpec", "cut_shard", "extremes", "spec_of", "make_parameter"]

InitMethod = Callable[[Tensor, torch.Generator], None]
"""Fills a float32 CPU tensor in place, with numbers from a generator."""


@dataclass(frozen=True)
class ParameterSpec:
    """Facts that initialisation, checkpoints and the optimizer need."""

    init_method: InitMethod
    """Fills the logical tensor with initial values."""
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
    """Allocates a parameter of ``shape`` on this rank, with its `ParameterSpec`.

    ``logical_shape`` defaults to ``shape``.
    """
    parameter = nn.Parameter(torch.empty(*shape))
    parameter.spec = ParameterSpec(  # type: ignore[attr-defined]
        init_method, tuple(logical_shape or shape), tp_dim, shape, has_weight_decay
    )
    # DeepSpeed counts the squares of parameters without this mark once per tensor group
    parameter.tensor_model_parallel = tp_dim is not None  # type: ignore[attr-defined]
    return parameter


def spec_of(parameter: nn.Parameter) -> ParameterSpec:
    """The spec that `make_parameter` attached."""
    return parameter.spec  # type: ignore[attr-defined]


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
