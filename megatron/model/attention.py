"""Causal self-attention with a fused projection and grouped keys and values.

Shapes: b batch, s new positions, t all positions, n query heads and g key-value heads of this rank
(n = g * r), d head size. Rows of the fused projection are ordered [g, r queries + key + value, d],
so that tensor parallelism is a plain cut of dimension 0; with g = n this is GPT-NeoX's [n, 3, d].
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from megatron.model.attend import attend
from megatron.model.attention_span import EVERYTHING, AttentionSpan
from megatron.model.forward_context import ForwardContext, make_context
from megatron.model.init_functions import init_methods
from megatron.model.key_value_cache import KeyValueCache
from megatron.model.linear import ColumnParallelLinear, RowParallelLinear
from megatron.model.positional_embeddings import RotaryTable, rotate_, rotated
from megatron.model.query_key_norm import make_head_norm, make_neox_norm
from megatron.mpu.tensor_parallel import SINGLE, TensorParallel
from megatron.sizing.model_shape import ModelShape

__all__ = ["SelfAttention"]


class SelfAttention(nn.Module):
    """Attention without a stored (s, s) mask or score matrix; see `attend`.

    Args:
        rotary: The table of angles; None without rotary positions.
        span: What the queries of this layer see, and the bias of their scores.
    """

    def __init__(
        self,
        config: ModelShape,
        rotary: RotaryTable | None,
        tp: TensorParallel = SINGLE,
        span: AttentionSpan = EVERYTHING,
    ):
        super().__init__()
        self.tp = tp
        self.span = span
        self.num_kv_heads = tp.divide(config.num_kv_heads, "num_kv_heads")
        self.queries_per_group = config.num_attention_heads // config.num_kv_heads
        self.head_dim = config.head_dim
        self.dropout = config.attention_dropout
        self.rotary = rotary
        self.qk_norm = config.qk_norm
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
            bias=config.use_bias_in_attn_output,
            tp=tp,
        )
        if config.qk_norm == "head":
            self.q_norm = make_head_norm(config, tp)
            self.k_norm = make_head_norm(config, tp)
        elif config.qk_norm == "neox":
            self.qk_layernorm = make_neox_norm(config, tp)

    def forward(
        self,
        hidden: Tensor,
        context: ForwardContext | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Attends from each position to itself and earlier positions, or as ``context`` defines.

        Args:
            hidden: (b, s, h), or this rank's part of the sequence with sequence parallelism.
            context: Positions and mask of this pass; None is a causal pass that starts at position
                0.
            cache: Keys and values of earlier positions; those of the new positions are added.

        Returns:
            Partial sums (b, s, h) for `RowParallelLinear.finish` of ``dense``.
        """
        fused = self._project(hidden)
        batch, length = fused.shape[:2]
        if self.qk_norm != "none":
            fused = self._normalize(fused)
        context = self.context_of_pass(context, length, like=fused)
        if context.angles is not None:
            rotate = rotated if torch.compiler.is_compiling() else rotate_
            fused = rotate(fused, context.angles)
        return self.dense(self._attend(fused, context, cache).reshape(batch, length, -1))

    def context_of_pass(
        self, given: ForwardContext | None, length: int, *, like: Tensor
    ) -> ForwardContext:
        """The context of a pass over ``length`` positions, if none is ``given``."""
        if given is not None:
            return given
        return make_context(self.rotary, length, like=like, is_whole=True)

    def _project(self, hidden: Tensor) -> Tensor:
        """(b, s, h) -> (b, s, g, r + 2, d)."""
        hidden = self.tp.enter(hidden)
        group = (self.num_kv_heads, self.queries_per_group + 2, self.head_dim)
        return self.query_key_value(hidden).view(*hidden.shape[:2], *group)

    def _normalize(self, fused: Tensor) -> Tensor:
        """Normalises queries and keys, (b, s, g, r + 2, d), and copies the values."""
        queries, key, value = fused.split((self.queries_per_group, 1, 1), dim=3)
        if self.qk_norm == "head":
            return torch.cat((self.q_norm(queries), self.k_norm(key), value), dim=3)
        both = fused[..., :2, :].transpose(2, 3)  # one query per group: g is the number of heads
        return torch.cat((self.qk_layernorm(both).transpose(2, 3), value), dim=3)

    def _attend(
        self, fused: Tensor, context: ForwardContext, cache: KeyValueCache | None
    ) -> Tensor:
        """(b, s, g, r + 2, d) -> (b, s, n, d)."""
        query = fused[..., : self.queries_per_group, :].flatten(2, 3).transpose(1, 2)
        key, value = fused[..., -2, :].transpose(1, 2), fused[..., -1, :].transpose(1, 2)
        if cache is not None:
            key, value = cache.append(key, value)
        dropout = self.dropout if self.training else 0.0
        with self.tp.own_random_state() if dropout else nullcontext():
            attended = attend(query, key, value, context, self.span, dropout=dropout)
        return attended.transpose(1, 2)
