"""Computes log-likelihoods of endings after their contexts, in batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from megatron.errors import NotFiniteError
from megatron.eval_tasks.packing import Pair, Row, cut_batches, make_rows, pack_rows
from megatron.model.gpt2_model import GPT2Model

__all__ = ["Score", "score_pairs"]

Score = tuple[float, bool]
"""Log-likelihood of an ending in nats, and whether greedy decoding would generate it."""


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
        model: The model, in evaluation mode. The ranks of a tensor-parallel group call this
            function with the same pairs.
        pairs: Contexts and endings; if a context is too long for the model, its beginning is cut
            off.
        max_batch_tokens: Maximum tokens per forward pass, see `cut_batches`.
        on_score: Called with the number of a pair and its score as soon as the score is known.
        before_batch: Called before each forward pass; an exception that it raises ends the
            computation.

    Returns:
        One score per pair, in the order of ``pairs``.

    Raises:
        TaskError: If an ending is longer than the model's context.
        NotFiniteError: If logits are not finite, for example because fp16 overflowed.
    """
    rows = make_rows(pairs, window=model.config.longest_text)
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
    values = torch.stack((-nll.double(), (~is_greedy).double())).cpu()  # waits for the device once
    log_likelihoods, misses = sums.index_add_(1, packed.endings, values).tolist()
    if not all(map(math.isfinite, log_likelihoods)):
        raise NotFiniteError(
            "loglikelihood: the model's logits are not finite; use fp32 or bfloat16 as precision, "
            "or another checkpoint"
        )
    return [(total, missed == 0) for total, missed in zip(log_likelihoods, misses, strict=True)]
