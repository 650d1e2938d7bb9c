"""Initial values of parameters, the same on every parallel layout.

Each parameter has its own random generator, seeded by the run's seed and the parameter's name, and
is drawn in its logical (unsharded) shape. So neither the number of ranks nor the order in which
modules are built changes any initial value.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from megatron.model.parameters import InitMethod, cut_shard, spec_of
from megatron.sizing.model_shape import ModelShape

__all__ = [
    "INIT_METHODS",
    "init_methods",
    "initialize_parameters",
    "ones",
    "resolve_init_method",
    "zeros",
]


def zeros(tensor: Tensor, generator: torch.Generator) -> None:
    """Biases."""
    tensor.zero_()


def ones(tensor: Tensor, generator: torch.Generator) -> None:
    """Scales of norms."""
    tensor.fill_(1.0)


def _normal(std: float) -> InitMethod:
    def fill(tensor: Tensor, generator: torch.Generator) -> None:
        nn.init.normal_(tensor, 0.0, std, generator=generator)

    return fill


def _xavier_uniform(tensor: Tensor, generator: torch.Generator) -> None:
    nn.init.xavier_uniform_(tensor, generator=generator)


def _xavier_normal(tensor: Tensor, generator: torch.Generator) -> None:
    nn.init.xavier_normal_(tensor, generator=generator)


def _orthogonal(gain: float) -> InitMethod:
    def fill(tensor: Tensor, generator: torch.Generator) -> None:
        nn.init.orthogonal_(tensor, gain=gain, generator=generator)

    return fill


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


def initialize_parameters(module: nn.Module, seed: int, *, tp_rank: int = 0) -> None:
    """Fills every parameter of ``module`` from (seed, name).

    Its `ParameterSpec` define how a parameter is filled. On ``meta`` there is nothing to fill.
    """
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.is_meta:
                continue
            digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
            spec = spec_of(parameter)
            logical = torch.empty(spec.logical_shape, dtype=torch.float32)
            # every method treats a fused gated projection (2, f, h) as one matrix (2f, h)
            flat = logical.flatten(0, -2) if logical.dim() > 2 else logical
            spec.init_method(flat, generator)
            parameter.copy_(cut_shard(logical, spec, tp_rank))
