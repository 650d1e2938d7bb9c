"""What a parameter must say about itself: shape in every layout, initial value, weight decay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["InitMethod", "ParameterFacts", "facts_of", "make_parameter"]

InitMethod = Callable[[Tensor, torch.Generator], None]
"""Fills a float32 CPU tensor in place from a generator."""


@dataclass(frozen=True)
class ParameterFacts:
    """Read by initialisation, checkpoints and the optimizer."""

    init_method: InitMethod
    """Fills the logical tensor."""
    logical_shape: tuple[int, ...]
    """Shape without vocabulary padding and without sharding."""
    tp_dim: int | None
    """Dimension cut by tensor parallelism; None for a replicated parameter."""
    has_weight_decay: bool
    """False for biases and norms."""


def make_parameter(
    *shape: int,
    init_method: InitMethod,
    logical_shape: tuple[int, ...] | None = None,
    tp_dim: int | None = None,
    has_weight_decay: bool = True,
) -> nn.Parameter:
    """Allocates a parameter of ``shape`` on this rank, with its `ParameterFacts`.

    ``logical_shape`` is ``shape`` unless given.
    """
    parameter = nn.Parameter(torch.empty(*shape))
    parameter.facts = ParameterFacts(  # type: ignore[attr-defined]
        init_method, tuple(logical_shape or shape), tp_dim, has_weight_decay
    )
    return parameter


def facts_of(parameter: nn.Parameter) -> ParameterFacts:
    """The facts that `make_parameter` attached."""
    return parameter.facts  # type: ignore[attr-defined]
