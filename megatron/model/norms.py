"""Normalisation layers: LayerNorm, with and without parameters, RMSNorm, ScaleNorm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron.model.init_functions import ones, zeros
from megatron.model.parameters import make_parameter
from megatron.mpu.tensor_parallel import SINGLE, TensorParallel
from megatron.sizing.model_shape import ModelShape

__all__ = ["LayerNorm", "NonParametricLayerNorm", "RMSNorm", "ScaleNorm", "make_norm"]


class LayerNorm(nn.Module):
    """``(x - mean) / sqrt(var + eps) * weight + bias`` over the last dimension."""

    def __init__(
        self,
        hidden_size: int,
        *,
        epsilon: float,
        bias: bool = True,
        tp: TensorParallel = SINGLE,
    ):
        super().__init__()
        self.tp = tp
        self.epsilon = epsilon
        self.weight = make_parameter(hidden_size, init_method=ones, has_weight_decay=False)
        self.bias = (
            make_parameter(hidden_size, init_method=zeros, has_weight_decay=False) if bias else None
        )

    def forward(self, hidden: Tensor) -> Tensor:
        weight, bias = self.tp.shared(self.weight), self.tp.shared(self.bias)
        return F.layer_norm(hidden, self.weight.shape, weight, bias, self.epsilon)


class NonParametricLayerNorm(nn.Module):
    """``(x - mean) / sqrt(var + eps)`` over the last dimension, as in OLMo (arXiv:2402.00838)."""

    def __init__(self, hidden_size: int, *, epsilon: float):
        super().__init__()
        self.hidden_size = hidden_size
        self.epsilon = epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        return F.layer_norm(hidden, (self.hidden_size,), None, None, self.epsilon)


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * scale`` (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, hidden_size: int, *, epsilon: float, tp: TensorParallel = SINGLE):
        super().__init__()
        self.tp = tp
        self.epsilon = epsilon
        self.scale = make_parameter(hidden_size, init_method=ones, has_weight_decay=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return F.rms_norm(hidden, self.scale.shape, self.tp.shared(self.scale), self.epsilon)


class ScaleNorm(nn.Module):
    """``g * x / max(|x|, eps)`` (Nguyen and Salazar 2019, arXiv:1910.05895)."""

    def __init__(self, hidden_size: int, *, epsilon: float, tp: TensorParallel = SINGLE):
        super().__init__()
        self.tp = tp
        self.epsilon = epsilon
        self.g = make_parameter(1, init_method=ones, has_weight_decay=False)

    def forward(self, hidden: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True).clamp_min(self.epsilon)
        return hidden / norm * self.tp.shared(self.g)


def make_norm(
    config: ModelShape, tp: TensorParallel = SINGLE, *, width: int | None = None
) -> nn.Module:
    """Builds the configured norm, for the residual stream or for vectors of another ``width``."""
    size = config.hidden_size if width is None else width
    if config.norm == "rmsnorm":
        return RMSNorm(size, epsilon=config.norm_epsilon, tp=tp)
    if config.norm == "scalenorm":
        return ScaleNorm(size, epsilon=config.norm_epsilon, tp=tp)
    if config.norm == "non_parametric_layernorm":
        return NonParametricLayerNorm(size, epsilon=config.norm_epsilon)
    return LayerNorm(size, epsilon=config.norm_epsilon, bias=config.use_bias_in_norms, tp=tp)
