"""Token and position embeddings at the bottom of the network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron.model.init_functions import init_methods
from megatron.model.loss import VocabularyPart
from megatron.model.parameters import make_parameter
from megatron.model.positional_embeddings import sinusoidal_positions
from megatron.mpu.tensor_parallel import SINGLE, TensorParallel
from megatron.sizing.model_shape import ModelShape

__all__ = ["WORD_EMBEDDINGS", "Embedding", "EmbeddingTable", "VocabularyTable"]

WORD_EMBEDDINGS = "word_embeddings.weight"
"""End of the name of the table of tokens, tied or not."""


class EmbeddingTable(nn.Module):
    """A lookup table (rows, h), the same on every rank."""

    def __init__(self, config: ModelShape, rows: int):
        super().__init__()
        self.weight = make_parameter(rows, config.hidden_size, init_method=init_methods(config)[0])

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class VocabularyTable(nn.Module):
    """One row per token, cut over the tensor-parallel group.

    Padding rows exist only in memory, never in a checkpoint; ``part`` tells which rows are tokens.
    """

    def __init__(self, config: ModelShape, tp: TensorParallel = SINGLE):
        super().__init__()
        self.tp = tp
        rows = tp.divide(config.padded_vocab_size, "padded_vocab_size")
        first = tp.rank * rows
        self.part = VocabularyPart(first, max(0, min(rows, config.vocab_size - first)), tp)
        self.weight = make_parameter(
            rows,
            config.hidden_size,
            init_method=init_methods(config)[0],
            logical_shape=(config.vocab_size, config.hidden_size),
            tp_dim=0,
        )

    def forward(self, ids: Tensor) -> Tensor:
        """(b, s) -> partial sums (b, s, h) for `TensorParallel.leave`."""
        if self.tp.size == 1:
            return F.embedding(ids, self.weight)
        local, is_here = self.part.localize(ids)
        return F.embedding(local, self.weight).masked_fill(~is_here.unsqueeze(-1), 0.0)


class Embedding(nn.Module):
    """Token ids (b, s) -> (b, s, h), with learned or sinusoidal positions if configured.

    With sequence parallelism the result is this rank's part of the sequence.
    """

    def __init__(self, config: ModelShape, tp: TensorParallel = SINGLE):
        super().__init__()
        self.config = config
        self.tp = tp
        self.word_embeddings = VocabularyTable(config, tp)
        self._sinusoids: Tensor | None = None  # float32 and not a buffer, as in `RotaryTable`
        if config.pos_emb == "learned":
            self.position_embeddings = EmbeddingTable(config, config.max_position_embeddings)

    def forward(
        self,
        tokens: Tensor | tuple[Tensor, Tensor],
        start: int = 0,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Embeds tokens at ``positions`` (b, s), or at ``start, start + 1, ...``.

        A pipeline, which gives a layer one argument, passes the pair of tokens and positions.
        """
        if not isinstance(tokens, Tensor):
            tokens, positions = tokens
        hidden = self.tp.leave(self.word_embeddings(tokens))
        vectors = self._positions(tokens, start, positions)
        if vectors is not None:
            hidden = hidden + self.tp.scatter(vectors).to(hidden.dtype)
        if self.config.hidden_dropout and self.training:
            with self.tp.residual_random_state():
                hidden = F.dropout(hidden, self.config.hidden_dropout)
        return hidden

    def _positions(self, tokens: Tensor, start: int, positions: Tensor | None) -> Tensor | None:
        """Position vectors (b or 1, s, h) to add, or None."""
        kind, width, device = self.config.pos_emb, self.config.hidden_size, tokens.device
        offset = self.config.opt_pos_emb_offset
        start += offset
        end = start + tokens.shape[1]
        if offset and positions is not None:
            positions = positions + offset
        if kind == "learned":
            if positions is None:
                positions = torch.arange(start, end, device=device).unsqueeze(0)
            return self.position_embeddings(positions)
        if kind == "sinusoidal":
            longest = max(self.config.max_position_embeddings + offset, end)
            table = self._sinusoids
            if table is None or table.shape[0] < longest or table.device != device:
                self._sinusoids = table = sinusoidal_positions(longest, width, device)
            return table[start:end].unsqueeze(0) if positions is None else table[positions]
        return None
