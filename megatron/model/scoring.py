"""What an evaluation asks of the output matrix: how likely given tokens are, and the likeliest one.

Logits of padding rows are never made, and those of a chunk of positions are forgotten before the
next chunk begins.

Shapes: u positions, h hidden size, n targets, c positions a chunk, m its targets, v tokens of the
vocabulary on this rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

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
    """Compares each target with all tokens of the vocabulary.

    Args:
        hidden: (u, h), any floating dtype; the same on all ranks of the tensor-parallel group.
        weight: (rows >= part.size, h), same dtype; rows beyond ``part.size`` are padding.
        targets: (n,) int64 tokens, those of the first position first.
        part: The tokens of ``weight``.
        counts: How many targets each position has, u numbers with the sum n; None is one each.

    Returns:
        The negative log-likelihoods (n,) in nats, float32 (float64 for float64 input), and whether
        each target is the likeliest token (n,) bool: of equals the one with the lowest id, as
        ``argmax`` has it. The same on all ranks of the group.
    """
    if not hidden.shape[0]:
        empty = hidden.new_empty(0)
        return upcast(empty), empty.bool()
    size = loss_chunks.chunk_tokens(weight.shape[0])
    counts = [1] * hidden.shape[0] if counts is None else counts
    target_counts = [sum(counts[start : start + size]) for start in range(0, len(counts), size)]
    owners = torch.repeat_interleave(
        torch.arange(len(counts)), torch.tensor(counts, dtype=torch.int64), output_size=len(targets)
    ).to(hidden.device)
    score = _score_chunk if part.tp.size == 1 else _score_chunk_in_parallel
    pieces = [
        score(upcast(chunk @ weight[: part.size].t()), rows % size, wanted, part)
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
        # argmax reads each logit with its index, several times slower than the largest value alone;
        # only where a target has that value may the index decide
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
    """`_score_chunk` where each rank holds the logits of its part: two small all-reduces."""
    count = logits.shape[0]
    if part.size:
        own_largest, own_first = logits.max(dim=1)
        local, is_here = part.localize(targets)
        chosen = logits[rows, local] * is_here
    else:  # a rank that holds nothing but padding
        own_largest = logits.new_full((count,), float("-inf"))
        own_first = torch.zeros_like(own_largest, dtype=torch.int64)
        chosen = logits.new_zeros(len(targets))
    largest = part.tp.all_reduce(own_largest.clone(), op=dist.ReduceOp.MAX)
    # the likeliest token before the target, if any, has the largest value on the rank that holds it
    comes_before = (own_largest == largest)[rows] & (own_first[rows] + part.first < targets)
    normalizer = logits.sub_(largest[:, None]).exp_().sum(dim=1)
    sums = part.tp.all_reduce(torch.cat((normalizer, chosen, comes_before.to(chosen.dtype))))
    normalizer, chosen, blockers = sums.split((count, len(targets), len(targets)))
    is_greedy = (chosen == largest[rows]) & (blockers == 0)
    return (normalizer.log() + largest)[rows] - chosen, is_greedy
