"""Feed-forward layers: h -> f -> h, plain or gated (with 2 f features in the first projection)."""

from __future__ import annotations

from torch import Tensor, nn

from megatron.model.activations import get_activation
from megatron.model.init_functions import init_methods
from megatron.model.linear import ColumnParallelLinear, RowParallelLinear
from megatron.mpu.tensor_parallel import SINGLE, TensorParallel
from megatron.sizing.model_shape import ModelShape

__all__ = ["MLP"]


class MLP(nn.Module):
    """``dense_4h_to_h(act(dense_h_to_4h(x)))``; gated: ``act(gate) * x`` with the gate first."""

    def __init__(self, config: ModelShape, tp: TensorParallel = SINGLE):
        super().__init__()
        self.tp = tp
        self.is_gated = config.is_gated_mlp
        self.activation = get_activation(config.activation, tanh_gelu=config.bias_gelu_fusion)
        init_method, output_init_method = init_methods(config)
        num_fused = 2 if self.is_gated else 1
        self.dense_h_to_4h = ColumnParallelLinear(
            config.hidden_size,
            config.mlp_inner_size * num_fused,
            init_method=init_method,
            bias=config.use_bias_in_mlp,
            tp=tp,
            num_fused=num_fused,
        )
        self.dense_4h_to_h = RowParallelLinear(
            config.mlp_inner_size,
            config.hidden_size,
            init_method=output_init_method,
            bias=config.use_bias_in_mlp,
            tp=tp,
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Partial sums (b, s, h) for `RowParallelLinear.finish` of ``dense_4h_to_h``."""
        inner = self.dense_h_to_4h(self.tp.enter(hidden))
        if self.is_gated:
            gate, inner = inner.chunk(2, dim=-1)
            return self.dense_4h_to_h(self.activation(gate) * inner)
        return self.dense_4h_to_h(self.activation(inner))
