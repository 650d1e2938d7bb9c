"""Scores of given tokens: their log-likelihood, and whether they are the likeliest token.

Logits of padding rows are never computed, and those of one chunk of positions are freed before the
next chunk begins.

Shapes: u positions, h hidden size, n targets, c positions per chunk, m its targets, v tokens of the
vocabulary on this rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from megatron.model.cpu.products import product
from megatron.model.loss import VocabularyPart, upcast
from megatron.sizing import loss_chunks

__all__ = ["score_targets"]


@torch.no_grad()
def score_targets(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    part: VocabularyPart,
    counts: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Scores each target against all tokens of the vocabulary.

    Args:
        hidden: (u, h), any floating dtype; the same on all ranks of the tensor-parallel group.
        weight: (rows >= part.size, h), same dtype; rows beyond ``part.size`` are padding.
        targets: (n,) int64 tokens, in the order of the positions.
        part: The tokens to which the rows of ``weight`` belong.
        counts: Number of targets of each position, u numbers with the sum n; None: one each.

    Returns:
        The negative log-likelihoods (n,) in nats, float32 (float64 for float64 input), and whether
        each target is the likeliest token (n,) bool; of equally likely tokens this is the one with
        the lowest id, as in ``argmax``. Equal on all ranks of the group.
    """
    if not hidden.shape[0]:
        empty = hidden.new_empty(0)
        return upcast(empty), empty.bool()
    size = loss_chunks.chunk_tokens(weight.shape[0], hidden.device.type)
    counts = [1] * hidden.shape[0] if counts is None else counts
    target_counts = [sum(counts[start : start + size]) for start in range(0, len(counts), size)]
    owners = torch.repeat_interleave(
        torch.arange(len(counts)), torch.tensor(counts, dtype=torch.int64), output_size=len(targets)
    ).to(hidden.device)
    score = _score_chunk if part.tp.size == 1 else _score_chunk_in_parallel
    pieces = [
        score(upcast(product(chunk, weight[: part.size])), rows % size, wanted, part)
        for chunk, rows, wanted in zip(
            hidden.split(size),
            owners.split(target_counts),
            targets.split(target_counts),
            strict=True,
        )
    ]
    nll, is_greedy = zip(*pieces, strict=True)
    return torch.cat(nll), torch.cat(is_greedy)


def _score_chunk(
    logits: Tensor, rows: Tensor, targets: Tensor, part: VocabularyPart
) -> tuple[Tensor, Tensor]:
    """(c, v), overwritten, (m,) rows of it, (m,) -> (m,), (m,)."""
    if logits.device.type == "cpu":
        # argmax handles an index per logit and is several times slower than max; the index is
        # needed only if a target has the largest value
        largest = logits.amax(dim=1)
        is_greedy = logits[rows, targets] == largest[rows]
        (candidates,) = torch.where(is_greedy)
        first = logits[rows[candidates]].argmax(dim=1)
        is_greedy[candidates] = first == targets[candidates]
    else:
        is_greedy = logits.argmax(dim=1)[rows] == targets
    log_likelihoods = torch.log_softmax(logits, dim=1, out=logits)
    return -log_likelihoods[rows, targets], is_greedy


def _score_chunk_in_parallel(
    logits: Tensor, rows: Tensor, targets: Tensor, part: VocabularyPart
) -> tuple[Tensor, Tensor]:
    """`_score_chunk` with the logits distributed over ranks: two small all-reduces."""
    count = logits.shape[0]
    if part.size:
        own_largest, own_first = logits.max(dim=1)
        local, is_here = part.localize(targets)
        chosen = logits[rows, local] * is_here
    else:  # a rank that has only padding
        own_largest = logits.new_full((count,), float("-inf"))
        own_first = torch.zeros_like(own_largest, dtype=torch.int64)
        chosen = logits.new_zeros(len(targets))
    largest = part.tp.all_reduce(own_largest.clone(), op=dist.ReduceOp.MAX)
    # true on ranks where the largest value appears at a lower token id than the target's
    comes_before = (own_largest == largest)[rows] & (own_first[rows] + part.first < targets)
    normalizer = logits.sub_(largest[:, None]).exp_().sum(dim=1)
    sums = part.tp.all_reduce(torch.cat((normalizer, chosen, comes_before.to(chosen.dtype))))
    normalizer, chosen, blockers = sums.split((count, len(targets), len(targets)))
    is_greedy = (chosen == largest[rows]) & (blockers == 0)
    return (normalizer.log() + largest)[rows] - chosen, is_greedy
