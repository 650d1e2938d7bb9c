"""The top of the network: final norm and unembedding."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron.model.loss import ChunkTerms, chunked_cross_entropy, token_losses
from megatron.model.norms import make_norm
from megatron.model.scoring import score_targets
from megatron.model.word_embeddings import VocabularyTable
from megatron.mpu.tensor_parallel import SINGLE, TensorParallel
from megatron.sizing.model_shape import ModelShape

__all__ = ["FinalNorm", "OutputLayer"]


class FinalNorm(nn.Module):
    """The norm above the last block."""

    def __init__(self, config: ModelShape, tp: TensorParallel = SINGLE):
        super().__init__()
        self.norm = make_norm(config, tp)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.norm(hidden)


class OutputLayer(nn.Module):
    """Unembedding: computes losses without storing all logits, or returns logits.

    Args:
        tied: The embedding whose rows are used; None gives the layer its own matrix.
    """

    def __init__(
        self,
        config: ModelShape,
        tp: TensorParallel = SINGLE,
        *,
        tied: VocabularyTable | None = None,
    ):
        super().__init__()
        self.config = config
        self.tp = tp
        self.product: Callable[[Tensor], Tensor] | None = None
        self.mean_tokens: Tensor | None = None
        """Divisor of sums of losses, shape (): the mean number of tokens that count, per
        micro-batch of the global batch. None if all micro-batches have the same number."""
        self.compiled: ChunkTerms | None = None
        """`chunk_terms`, compiled; see `megatron.model.compiling`."""
        self._tied = () if tied is None else (tied,)  # a tuple, so not registered twice
        if tied is None:
            self.final_linear = VocabularyTable(config, tp)

    @property
    def table(self) -> VocabularyTable:
        """The table whose rows are multiplied with the hidden states."""
        return self._tied[0] if self._tied else self.final_linear

    def forward(
        self, hidden: Tensor, labels: Tensor | None = None, loss_mask: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (b, s, vocab_size), or with labels the pair (loss, losses (b, s)).

        The loss is the sum over the tokens whose ``loss_mask`` is not 0, divided by
        ``mean_tokens``, or by their number if that is None. With ``mean_tokens``, the mean of these
        losses over the micro-batches of a global batch is the mean over all its tokens, however
        unevenly the tokens are distributed.
        """
        if labels is None or loss_mask is None:
            return self._logits(self.tp.enter(hidden))
        flat = self.tp.enter(hidden).flatten(0, 1)
        flat_labels, mask = labels.flatten(), loss_mask.flatten().float()
        count = mask.sum().clamp_min(1.0) if self.mean_tokens is None else self.mean_tokens
        token_weight = mask / count
        weight, part = self.table.weight, self.table.part
        if not torch.is_grad_enabled():
            nll = token_losses(flat, weight, flat_labels, part)
            return torch.dot(nll, token_weight.to(nll.dtype)), nll.view_as(labels)
        loss, nll = chunked_cross_entropy(
            *(flat, weight, flat_labels, token_weight),
            part=part,
            z_loss=self.config.z_loss,
            terms=self.compiled,
        )
        return loss, nll.view_as(labels)

    def score(
        self, hidden: Tensor, targets: Tensor, *, counts: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Log-likelihoods of tokens, and whether each is the likeliest; see `score_targets`."""
        table = self.table
        return score_targets(hidden, table.weight, targets, part=table.part, counts=counts)

    def product_operands(self) -> tuple[Tensor, None]:
        """The rows of the matrix; `frozen_weights` sets ``product`` from them."""
        table = self.table
        return (table.weight[: table.part.size] if self.tp.size == 1 else table.weight), None

    def _logits(self, hidden: Tensor) -> Tensor:
        if self.product is not None:
            local = self.product(hidden)
        else:
            local = hidden @ self.product_operands()[0].t()
        if self.tp.size == 1:
            return local
        local = local.contiguous()
        parts = [torch.empty_like(local) for _ in range(self.tp.size)]
        dist.all_gather(parts, local, group=self.tp.group)
        return torch.cat(parts, dim=-1)[..., : self.config.vocab_size]
