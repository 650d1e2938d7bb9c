"""One decoder block, sequential (GPT-2) or parallel (GPT-J) residual."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from megatron.model.attention import SelfAttention
from megatron.model.attention_span import EVERYTHING, AttentionSpan
from megatron.model.forward_context import ForwardContext
from megatron.model.key_value_cache import KeyValueCache
from megatron.model.linear import add_both_biases
from megatron.model.mlp import MLP
from megatron.model.norms import make_norm
from megatron.model.positional_embeddings import RotaryTable
from megatron.mpu.tensor_parallel import SINGLE, TensorParallel
from megatron.sizing.model_shape import ModelShape

__all__ = ["CompiledBlock", "TransformerLayer"]

CompiledBlock = Callable[["TransformerLayer", Tensor, tuple[Tensor, Tensor] | None], Tensor]


class TransformerLayer(nn.Module):
    """(b, s, h) -> (b, s, h).

    Sequential: ``y = x + attn(ln1(x)); z = y + mlp(ln2(y))``.
    Parallel (``gpt_j_residual``): ``z = x + attn(ln1(x)) + mlp(ln2(x))``, with ``ln2 = ln1`` when
    ``gpt_j_tied``.
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
        self.is_parallel = config.gpt_j_residual
        self.is_tied = config.gpt_j_residual and config.gpt_j_tied
        self.dropout = config.hidden_dropout
        self.compiled: CompiledBlock | None = None
        """A training pass from hidden states and angles; see `megatron.model.compiling`."""
        self.input_layernorm = make_norm(config, tp)
        self.attention = SelfAttention(config, rotary, tp, span)
        if not self.is_tied:
            self.post_attention_layernorm = make_norm(config, tp)
        self.mlp = MLP(config, tp)

    def forward(
        self,
        hidden: Tensor,
        context: ForwardContext | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """``context`` and ``cache`` are passed to `SelfAttention.forward`."""
        if self.compiled is None or not self.training or cache is not None:
            return self.compute(hidden, context, cache)
        context = self.attention.context_of_pass(context, hidden.shape[1], like=hidden)
        return self.compiled(self, hidden, context.angles)

    def compute(
        self,
        hidden: Tensor,
        context: ForwardContext | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """`forward`, operation by operation."""
        normed = self.input_layernorm(hidden)
        attention = self.attention(normed, context, cache)
        if self.is_parallel:
            mlp = self.mlp(normed if self.is_tied else self.post_attention_layernorm(hidden))
            return self._add_both(hidden, attention, mlp)
        hidden = hidden + self._drop(self.attention.dense.finish(attention))
        mlp = self.mlp(self.post_attention_layernorm(hidden))
        return hidden + self._drop(self.mlp.dense_4h_to_h.finish(mlp))

    def _add_both(self, hidden: Tensor, attention: Tensor, mlp: Tensor) -> Tensor:
        """Adds both partial sums to the residual; without dropout one sum over ranks is enough."""
        first, second = self.attention.dense, self.mlp.dense_4h_to_h
        if self._drops:
            return hidden + self._drop(first.finish(attention)) + self._drop(second.finish(mlp))
        if not first.leaves_bias:
            return hidden + attention + mlp
        return hidden + add_both_biases(self.tp.leave(attention + mlp), first, second)

    @property
    def _drops(self) -> bool:
        return self.training and self.dropout > 0.0

    def _drop(self, hidden: Tensor) -> Tensor:
        if not self._drops:
            return hidden
        with self.tp.residual_random_state():
            return F.dropout(hidden, self.dropout)
