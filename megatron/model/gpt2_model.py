"""The GPT-NeoX network as one list of layers, and the plain (not pipelined) module made of it.

Parameters are named by GPT-NeoX's layer numbers, on every layout: ``0`` embedding, ``2 .. L+1``
blocks, ``L+3`` final norm, ``L+4`` output matrix (1 and L+2 were transpositions in GPT-NeoX and
hold nothing here). With tied embeddings layer 0 is ``tied_modules.embed`` and there is no L+4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from megatron.model.attention import KeyValueCache
from megatron.model.config import ModelConfig
from megatron.model.init_functions import initialize_parameters
from megatron.model.loss import DomainLossRecorder, chunked_cross_entropy, token_losses
from megatron.model.norms import make_norm
from megatron.model.positional_embeddings import RotaryTable
from megatron.model.transformer import TransformerLayer
from megatron.model.word_embeddings import Embedding, EmbeddingTable

__all__ = ["FinalNorm", "GPT2Model", "OutputLayer"]


class FinalNorm(nn.Module):
    """The norm above the last block."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.norm = make_norm(config)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.norm(hidden)


class OutputLayer(nn.Module):
    """Unembedding: losses without storing the logits, or logits where somebody asks for them."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self._tied: tuple[EmbeddingTable, ...] = ()
        if config.no_weight_tying:
            self.final_linear = EmbeddingTable(
                config, rows=config.padded_vocab_size, logical_rows=config.vocab_size, tp_dim=0
            )

    def tie(self, table: EmbeddingTable) -> None:
        """Uses the rows of ``table``; kept in a tuple so that it is not registered twice."""
        self._tied = (table,)

    @property
    def weight(self) -> Tensor:
        """The unembedding matrix, (padded_vocab_size, h)."""
        return self._tied[0].weight if self._tied else self.final_linear.weight

    def forward(
        self, hidden: Tensor, labels: Tensor | None = None, loss_mask: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (b, s, vocab_size), or with labels the pair (mean loss, losses (b, s)).

        The mean is over the tokens whose ``loss_mask`` is not 0.
        """
        vocab_size = self.config.vocab_size
        if labels is None or loss_mask is None:
            return hidden @ self.weight[:vocab_size].t()
        flat, flat_labels = hidden.flatten(0, 1), labels.flatten()
        mask = loss_mask.flatten().float()
        token_weight = mask / mask.sum().clamp_min(1.0)
        if not torch.is_grad_enabled():
            nll = token_losses(flat, self.weight, flat_labels, vocab_size=vocab_size)
            return torch.dot(nll, token_weight.to(nll.dtype)), nll.view_as(labels)
        loss, nll = chunked_cross_entropy(
            flat,
            self.weight,
            flat_labels,
            token_weight,
            vocab_size=vocab_size,
            z_loss=self.config.z_loss,
        )
        return loss, nll.view_as(labels)


class GPT2Model(nn.Module):
    """The whole network on one rank.

    Args:
        config: Shape of the network.
        seed: Seed of the initial values, see `initialize_parameters`.
        recorder: Receives per-domain losses of every forward pass with labels.
    """

    def __init__(
        self, config: ModelConfig, *, seed: int, recorder: DomainLossRecorder | None = None
    ):
        super().__init__()
        self.config = config
        self.recorder = recorder
        rotary = (
            RotaryTable(config.rotary_dim, config.rotary_emb_base)
            if config.pos_emb == "rotary"
            else None
        )
        last = config.num_layers + 2
        embedding = Embedding(config)
        if config.no_weight_tying:
            self.add_module("0", embedding)
        else:
            self.tied_modules = nn.ModuleDict({"embed": embedding})
        self._block_names = [str(index) for index in range(2, last)]
        for name in self._block_names:
            self.add_module(name, TransformerLayer(config, rotary))
        self.add_module(str(last + 1), FinalNorm(config))
        output = OutputLayer(config)
        if not config.no_weight_tying:
            output.tie(embedding.word_embeddings)
        self.add_module(str(last + 2), output)
        self._norm_name, self._output_name = str(last + 1), str(last + 2)
        initialize_parameters(self, seed)

    def forward(
        self,
        tokens: Tensor,
        labels: Tensor | None = None,
        loss_mask: Tensor | None = None,
        domain_ids: Tensor | None = None,
        *,
        caches: Sequence[KeyValueCache] | None = None,
        last_logits_only: bool = False,
    ) -> Tensor:
        """Mean loss of a micro-batch, or logits when no labels are given.

        Args:
            tokens: (b, s) int64.
            labels: (b, s) int64, the next tokens.
            loss_mask: (b, s), 0 where a token does not count.
            domain_ids: (b,) int64; with a recorder, where each sample's losses are booked.
            caches: One a layer; ``tokens`` then continue what the caches hold.
            last_logits_only: Return logits of the last position only, (b, 1, vocab_size).
        """
        hidden = self._hidden_states(tokens, caches)
        output = self.get_submodule(self._output_name)
        if labels is None:
            return output(hidden[:, -1:] if last_logits_only else hidden)
        loss, nll = output(hidden, labels, loss_mask)
        if self.recorder is not None and domain_ids is not None and loss_mask is not None:
            self.recorder.record(nll, loss_mask, domain_ids)
        return loss

    def _hidden_states(self, tokens: Tensor, caches: Sequence[KeyValueCache] | None) -> Tensor:
        embedding = (
            self.get_submodule("0") if self.config.no_weight_tying else self.tied_modules["embed"]
        )
        blocks = [self.get_submodule(name) for name in self._block_names]
        if caches is not None:
            hidden = embedding(tokens, start=caches[0].length)
            for block, cache in zip(blocks, caches, strict=True):
                hidden = block(hidden, cache)
        else:
            hidden = embedding(tokens)
            chunk = self.config.checkpoint_num_layers
            if chunk and self.training and torch.is_grad_enabled():
                for start in range(0, len(blocks), chunk):
                    hidden = checkpoint(
                        _run_blocks, blocks[start : start + chunk], hidden, use_reentrant=True
                    )
            else:
                hidden = _run_blocks(blocks, hidden)
        return self.get_submodule(self._norm_name)(hidden)


def _run_blocks(blocks: Sequence[nn.Module], hidden: Tensor) -> Tensor:
    for block in blocks:
        hidden = block(hidden)
    return hidden
