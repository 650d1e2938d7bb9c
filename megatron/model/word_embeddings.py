"""Token and position embeddings at the bottom of the network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron.model.config import ModelConfig
from megatron.model.init_functions import init_methods
from megatron.model.parameters import make_parameter
from megatron.model.positional_embeddings import sinusoidal_positions

__all__ = ["Embedding", "EmbeddingTable"]


class EmbeddingTable(nn.Module):
    """A lookup table (rows, h); padding rows exist in memory only, never in a checkpoint."""

    def __init__(self, config: ModelConfig, *, rows: int, logical_rows: int, tp_dim: int | None):
        super().__init__()
        self.weight = make_parameter(
            rows,
            config.hidden_size,
            init_method=init_methods(config)[0],
            logical_shape=(logical_rows, config.hidden_size),
            tp_dim=tp_dim,
        )

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class Embedding(nn.Module):
    """Token ids (b, s) -> (b, s, h), with learned or sinusoidal positions where configured."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.word_embeddings = EmbeddingTable(
            config, rows=config.padded_vocab_size, logical_rows=config.vocab_size, tp_dim=0
        )
        if config.pos_emb == "learned":
            rows = config.max_position_embeddings
            self.position_embeddings = EmbeddingTable(
                config, rows=rows, logical_rows=rows, tp_dim=None
            )

    def forward(self, tokens: Tensor, start: int = 0) -> Tensor:
        """Embeds tokens that stand at positions ``start, start + 1, ...``."""
        hidden = self.word_embeddings(tokens)
        length = tokens.shape[1]
        if self.config.pos_emb == "learned":
            positions = torch.arange(start, start + length, device=tokens.device)
            hidden = hidden + self.position_embeddings(positions)
        elif self.config.pos_emb == "sinusoidal":
            table = sinusoidal_positions(start + length, hidden.shape[-1], hidden.device)
            hidden = hidden + table[start:].to(hidden.dtype)
        if self.config.hidden_dropout and self.training:
            hidden = F.dropout(hidden, self.config.hidden_dropout)
        return hidden
