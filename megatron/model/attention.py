"""Causal self-attention with a fused projection and grouped keys and values.

Shapes: b batch, s new positions, t all positions, n query heads and g key-value heads of this rank
(n = g * r), d head size. Rows of the fused projection are ordered [g, r queries + key + value, d],
so that tensor parallelism is a plain cut of dimension 0; with g = n this is GPT-NeoX's [n, 3, d].
"""

from __future__ import annotations

from contextlib import nullcontext

import torch.nn.functional as F
from torch import Tensor, nn

from megatron.model.config import ModelConfig
from megatron.model.init_functions import init_methods
from megatron.model.key_value_cache import KeyValueCache
from megatron.model.linear import ColumnParallelLinear, RowParallelLinear
from megatron.model.positional_embeddings import RotaryTable, apply_rotary_
from megatron.model.reading import ReadingStep, rotate_
from megatron.mpu.tensor_parallel import SINGLE, TensorParallel

__all__ = ["SelfAttention"]


class SelfAttention(nn.Module):
    """Attention by ``scaled_dot_product_attention``: no (s, s) mask or score matrix is stored."""

    def __init__(
        self, config: ModelConfig, rotary: RotaryTable | None, tp: TensorParallel = SINGLE
    ):
        super().__init__()
        self.tp = tp
        self.num_kv_heads = tp.divide(config.num_kv_heads, "num_kv_heads")
        self.queries_per_group = config.num_attention_heads // config.num_kv_heads
        self.head_dim = config.head_dim
        self.dropout = config.attention_dropout
        self.rotary = rotary
        query_size = config.num_attention_heads * config.head_dim
        init_method, output_init_method = init_methods(config)
        self.query_key_value = ColumnParallelLinear(
            config.hidden_size,
            query_size + 2 * config.num_kv_heads * config.head_dim,
            init_method=init_method,
            bias=config.use_bias_in_attn_linear,
            tp=tp,
        )
        self.dense = RowParallelLinear(
            query_size,
            config.hidden_size,
            init_method=output_init_method,
            bias=config.use_bias_in_attn_linear,
            tp=tp,
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Attends from each position to itself and the ones before it.

        Args:
            hidden: (b, s, h), or this rank's part of the sequence with sequence parallelism.

        Returns:
            Partial sums (b, s, h) for `RowParallelLinear.finish` of ``dense``.
        """
        fused = self._project(hidden)
        batch, length = fused.shape[:2]
        if self.rotary is not None:
            cos, sin = self.rotary.get(length, hidden.device)
            fused = apply_rotary_(fused, cos, sin, self.queries_per_group + 1)
        return self.dense(self._attend(fused).reshape(batch, length, -1))

    def read(self, hidden: Tensor, step: ReadingStep, cache: KeyValueCache | None) -> Tensor:
        """As `forward`, without gradients and dropout, behind the positions of a cache.

        Args:
            hidden: (b, s, h), the new positions.
            step: Rotation and mask of this pass.
            cache: Keys and values of earlier positions; extended by the new ones.
        """
        fused = self._project(hidden)
        batch, length = fused.shape[:2]
        rotate_(fused[..., :-1, :], step)
        query, key, value = self._cut(fused)
        if cache is not None:
            key, value = cache.append(key, value)
        context = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=step.bias,
            is_causal=step.is_causal,
            enable_gqa=self.queries_per_group > 1,
        )
        return self.dense(context.transpose(1, 2).reshape(batch, length, -1))

    def _project(self, hidden: Tensor) -> Tensor:
        """(b, s, h) -> (b, s, g, r + 2, d)."""
        hidden = self.tp.enter(hidden)
        group = (self.num_kv_heads, self.queries_per_group + 2, self.head_dim)
        return self.query_key_value(hidden).view(*hidden.shape[:2], *group)

    def _cut(self, fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(b, s, g, r + 2, d) -> (b, n, s, d), (b, g, s, d), (b, g, s, d)."""
        query = fused[..., : self.queries_per_group, :].flatten(2, 3).transpose(1, 2)
        return query, fused[..., -2, :].transpose(1, 2), fused[..., -1, :].transpose(1, 2)

    def _attend(self, fused: Tensor) -> Tensor:
        """(b, s, g, r + 2, d) -> (b, s, n, d)."""
        dropout = self.dropout if self.training else 0.0
        query, key, value = self._cut(fused)
        with self.tp.own_random_state() if dropout else nullcontext():
            context = F.scaled_dot_product_attention(
                query,
                key,
                value,
                dropout_p=dropout,
                is_causal=query.shape[2] > 1,
                enable_gqa=self.queries_per_group > 1,
            )
        return context.transpose(1, 2)
