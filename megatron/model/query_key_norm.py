"""Norms of queries and keys, between their projection and their rotation.

Shapes: b batch, s sequence, n heads of this rank, d head size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron.model.init_functions import ones, zeros
from megatron.model.norms import make_norm
from megatron.model.parameters import InitMethod, make_parameter
from megatron.mpu.tensor_parallel import TensorParallel
from megatron.sizing.model_shape import ModelShape

__all__ = ["make_head_norm", "make_neox_norm"]


def make_head_norm(config: ModelShape, tp: TensorParallel) -> nn.Module:
    """A norm of the configured kind over the head size, with the same weight for all heads.

    It takes (..., d), as Qwen3's norms do.
    """
    return make_norm(config, tp.over_heads(), width=config.head_dim)


def make_neox_norm(config: ModelShape, tp: TensorParallel) -> nn.Module:
    """GPT-NeoX's one norm for queries and keys, which takes (b, s, 2, n, d).

    GPT-NeoX gives the shape ``[heads of a rank, head size]`` to the configured norm. Its layernorm
    then takes mean and variance over all these heads together; here over the heads of all ranks,
    so that the layout changes nothing. Its rmsnorm and scalenorm look at the last dimension alone.
    Source: Dehghani et al. 2023, arXiv:2302.05442.
    """
    if config.norm == "scalenorm":  # one number, whatever the shape
        return make_head_norm(config, tp)
    if config.norm == "rmsnorm":
        return _RMSNormOfHeads(config, tp)
    return _LayerNormOverHeads(config, tp)


class _RMSNormOfHeads(nn.Module):
    """Normalises each head by itself; the scale is (n, d)."""

    def __init__(self, config: ModelShape, tp: TensorParallel):
        super().__init__()
        self.epsilon = config.norm_epsilon
        self.scale = _make_weight(config, tp, ones)

    def forward(self, heads: Tensor) -> Tensor:
        return F.rms_norm(heads, heads.shape[-1:], None, self.epsilon) * self.scale


class _LayerNormOverHeads(nn.Module):
    """Normalises all heads of a position together; weight and bias, if any, are (n, d)."""

    def __init__(self, config: ModelShape, tp: TensorParallel):
        super().__init__()
        self.tp = tp
        self.epsilon = config.norm_epsilon
        self.weight = self.bias = None
        if config.norm == "layernorm":
            self.weight = _make_weight(config, tp, ones)
            self.bias = _make_weight(config, tp, zeros) if config.use_bias_in_norms else None

    def forward(self, heads: Tensor) -> Tensor:
        if self.tp.size == 1:
            return F.layer_norm(heads, heads.shape[-2:], self.weight, self.bias, self.epsilon)
        exact = heads.float() if heads.dtype in (torch.float16, torch.bfloat16) else heads
        centred = exact - self._mean(exact)
        deviation = (self._mean(centred.square()) + self.epsilon).sqrt()
        normed = (centred / deviation).to(heads.dtype)
        if self.weight is not None:
            normed = normed * self.weight
        return normed if self.bias is None else normed + self.bias

    def _mean(self, values: Tensor) -> Tensor:
        """Mean over the heads of all ranks, (..., 1, 1)."""
        return self.tp.total(values.mean((-2, -1), keepdim=True)) / self.tp.size


def _make_weight(config: ModelShape, tp: TensorParallel, init_method: InitMethod) -> nn.Parameter:
    heads = config.num_attention_heads
    return make_parameter(
        tp.divide(heads, "num_attention_heads"),
        config.head_dim,
        init_method=init_method,
        logical_shape=(heads, config.head_dim),
        tp_dim=0,
        has_weight_decay=False,
    )
