"""One decoder block, sequential (GPT-2) or parallel (GPT-J) residual."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from megatron.model.attention import KeyValueCache, SelfAttention
from megatron.model.config import ModelConfig
from megatron.model.mlp import MLP
from megatron.model.norms import make_norm
from megatron.model.positional_embeddings import RotaryTable

__all__ = ["TransformerLayer"]


class TransformerLayer(nn.Module):
    """(b, s, h) -> (b, s, h).

    Sequential: ``y = x + attn(ln1(x)); z = y + mlp(ln2(y))``.
    Parallel (``gpt_j_residual``): ``z = x + attn(ln1(x)) + mlp(ln2(x))``, with ``ln2 = ln1`` when
    ``gpt_j_tied``.
    """

    def __init__(self, config: ModelConfig, rotary: RotaryTable | None):
        super().__init__()
        self.is_parallel = config.gpt_j_residual
        self.is_tied = config.gpt_j_residual and config.gpt_j_tied
        self.dropout = config.hidden_dropout
        self.input_layernorm = make_norm(config)
        self.attention = SelfAttention(config, rotary)
        if not self.is_tied:
            self.post_attention_layernorm = make_norm(config)
        self.mlp = MLP(config)

    def forward(self, hidden: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        normed = self.input_layernorm(hidden)
        attention = self._drop(self.attention(normed, cache))
        if self.is_parallel:
            mlp_input = normed if self.is_tied else self.post_attention_layernorm(hidden)
            return hidden + attention + self._drop(self.mlp(mlp_input))
        hidden = hidden + attention
        return hidden + self._drop(self.mlp(self.post_attention_layernorm(hidden)))

    def _drop(self, hidden: Tensor) -> Tensor:
        if self.dropout == 0.0 or not self.training:
            return hidden
        return F.dropout(hidden, self.dropout)
