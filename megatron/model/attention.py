"""Causal self-attention with a fused projection, grouped keys and values, and a key-value cache.

Shapes: b batch, s new positions, t all positions, n query heads and g key-value heads of this rank
(n = g * r), d head size. Rows of the fused projection are ordered [g, r queries + key + value, d],
so that tensor parallelism is a plain cut of dimension 0; with g = n this is GPT-NeoX's [n, 3, d].
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron.model.config import ModelConfig
from megatron.model.init_functions import init_methods
from megatron.model.linear import ColumnParallelLinear, RowParallelLinear
from megatron.model.positional_embeddings import RotaryTable, apply_rotary_
from megatron.mpu.tensor_parallel import SINGLE, TensorParallel

__all__ = ["KeyValueCache", "SelfAttention"]


class KeyValueCache:
    """Keys and values of the positions seen so far, for one layer of one batch."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    @property
    def length(self) -> int:
        """Number of cached positions."""
        return 0 if self.keys is None else self.keys.shape[2]

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Adds (b, g, s, d) of new positions and returns those of all positions (b, g, t, d)."""
        if self.keys is not None and self.values is not None:
            keys = torch.cat((self.keys, keys), dim=2)
            values = torch.cat((self.values, values), dim=2)
        self.keys, self.values = keys, values
        return keys, values


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

    def forward(self, hidden: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Attends from each position to itself and the ones before it.

        Args:
            hidden: (b, s, h), or this rank's part of the sequence with sequence parallelism.
            cache: Keys and values of earlier positions; extended by the new ones.

        Returns:
            Partial sums (b, s, h) for `RowParallelLinear.finish` of ``dense``.
        """
        hidden = self.tp.enter(hidden)
        batch, length, _ = hidden.shape
        group = (self.num_kv_heads, self.queries_per_group + 2, self.head_dim)
        fused = self.query_key_value(hidden).view(batch, length, *group)
        start = 0 if cache is None else cache.length
        if self.rotary is not None:
            cos, sin = self.rotary.get(start + length, hidden.device)
            fused = apply_rotary_(fused, cos[start:], sin[start:], self.queries_per_group + 1)
        query = fused[..., : self.queries_per_group, :].flatten(2, 3).transpose(1, 2)
        key = fused[..., -2, :].transpose(1, 2)
        value = fused[..., -1, :].transpose(1, 2)
        if cache is not None:
            key, value = cache.append(key, value)
        context = self._attend(query, key, value, start)
        return self.dense(context.transpose(1, 2).reshape(batch, length, -1))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, start: int) -> Tensor:
        """(b, n, s, d), (b, g, t, d) twice -> (b, n, s, d); ``start`` positions came before."""
        length = query.shape[2]
        dropout = self.dropout if self.training else 0.0
        with self.tp.own_random_state() if dropout else nullcontext():
            return F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=_causal_mask(length, key) if start > 0 and length > 1 else None,
                dropout_p=dropout,
                is_causal=start == 0 and length > 1,
                enable_gqa=self.queries_per_group > 1,
            )


def _causal_mask(num_new: int, key: Tensor) -> Tensor:
    """(s, t) booleans for several new positions behind a cache, where ``is_causal`` is wrong."""
    num_all = key.shape[2]
    mask = torch.ones(num_new, num_all, dtype=torch.bool, device=key.device)
    return mask.tril(diagonal=num_all - num_new)
