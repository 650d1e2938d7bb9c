"""Feed-forward layers: h -> f -> h, plain or gated (then the first projection is 2f wide)."""

from __future__ import annotations

from torch import Tensor, nn

from megatron.model.activations import get_activation
from megatron.model.config import ModelConfig
from megatron.model.init_functions import init_methods
from megatron.model.linear import Linear

__all__ = ["MLP"]


class MLP(nn.Module):
    """``dense_4h_to_h(act(dense_h_to_4h(x)))``; gated: ``act(gate) * x`` with the gate first."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.is_gated = config.is_gated_mlp
        self.activation = get_activation(config.activation, tanh_gelu=config.bias_gelu_fusion)
        init_method, output_init_method = init_methods(config)
        self.dense_h_to_4h = Linear(
            config.hidden_size,
            config.mlp_inner_size * (2 if self.is_gated else 1),
            init_method=init_method,
            bias=config.use_bias_in_mlp,
            tp_dim=0,
        )
        self.dense_4h_to_h = Linear(
            config.mlp_inner_size,
            config.hidden_size,
            init_method=output_init_method,
            bias=config.use_bias_in_mlp,
            tp_dim=1,
        )

    def forward(self, hidden: Tensor) -> Tensor:
        inner = self.dense_h_to_4h(hidden)
        if self.is_gated:
            gate, inner = inner.chunk(2, dim=-1)
            return self.dense_4h_to_h(self.activation(gate) * inner)
        return self.dense_4h_to_h(self.activation(inner))
