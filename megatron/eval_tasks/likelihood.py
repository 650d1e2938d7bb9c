"""Log-likelihoods of endings after their contexts, in batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from megatron.errors import NotFiniteError
from megatron.eval_tasks.packing import Pair, Row, cut_batches, make_rows, pack_rows
from megatron.model.gpt2_model import GPT2Model

__all__ = ["Score", "score_pairs"]

Score = tuple[float, bool]
"""Log-likelihood of an ending in nats, and whether greedy decoding would have written it."""


def score_pairs(
    model: GPT2Model,
    pairs: Sequence[Pair],
    *,
    max_batch_tokens: int,
    on_score: Callable[[int, Score], None] | None = None,
    before_batch: Callable[[], None] | None = None,
) -> list[Score]:
    """Scores each ending after its context; equal contexts are computed once.

    Args:
        model: In evaluation mode. The ranks of a tensor-parallel group call it with the same pairs.
        pairs: Contexts and endings; a context that is too long for the window loses its beginning.
        max_batch_tokens: Most tokens of a forward pass, see `cut_batches`.
        on_score: Called with the number of a pair and its score as soon as it is known.
        before_batch: Called before each forward pass; what it raises ends the computation.

    Returns:
        One score per pair, in the order of ``pairs``.

    Raises:
        TaskError: See `fit_window`.
        NotFiniteError: If logits are not finite, as where fp16 cannot hold what the model computes.
    """
    rows = make_rows(pairs, window=model.config.max_position_embeddings)
    scores: dict[int, Score] = {}
    for batch in cut_batches(rows, max_tokens=max_batch_tokens):
        if before_batch is not None:
            before_batch()
        owners = [numbers for row in batch for numbers in row.owners]
        for numbers, score in zip(owners, _score_batch(model, batch), strict=True):
            for number in numbers:
                scores[number] = score
                if on_score is not None:
                    on_score(number, score)
    return [scores[number] for number in range(len(pairs))]


@torch.no_grad()
def _score_batch(model: GPT2Model, rows: Sequence[Row]) -> list[Score]:
    """One score for each ending of each row."""
    packed = pack_rows(rows, next(model.parameters()).device)
    hidden = model.hidden_states(
        packed.tokens, positions=packed.positions, attention_mask=packed.attention_mask
    )
    scored = hidden.flatten(0, 1).index_select(0, packed.scored)
    nll, is_greedy = model.output_layer.score(scored, packed.targets, counts=packed.counts)
    num_endings = sum(len(row.endings) for row in rows)
    sums = torch.zeros(2, num_endings, dtype=torch.float64)
    values = torch.stack((-nll.double(), (~is_greedy).double())).cpu()  # one wait for the device
    log_likelihoods, misses = sums.index_add_(1, packed.endings, values).tolist()
    if not all(map(math.isfinite, log_likelihoods)):
        raise NotFiniteError(
            "loglikelihood: the model's logits are not finite; use fp32 or bfloat16 as precision, "
            "or another checkpoint"
        )
    return [(total, missed == 0) for total, missed in zip(log_likelihoods, misses, strict=True)]
