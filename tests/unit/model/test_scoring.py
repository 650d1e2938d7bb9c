"""Scores of single tokens: the same as from all logits, and which token would have been chosen."""

from __future__ import annotations

import pytest
import torch

from megatron.model.loss import VocabularyPart
from megatron.model.scoring import score_targets
from megatron.sizing import loss_chunks


def logits_and_targets(dtype=torch.float32, *, positions=7, vocab=50, padded=64):
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(positions, 16, generator=generator).to(dtype)
    weight = torch.randn(padded, 16, generator=generator).to(dtype)
    counts = [int(n) for n in torch.randint(0, 4, (positions,), generator=generator)]
    targets = torch.randint(0, vocab, (sum(counts),), generator=generator)
    return hidden, weight, targets, counts


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 1e-5)],
)
def test_scores_are_those_of_a_softmax_over_the_true_vocabulary(dtype, tolerance, monkeypatch):
    monkeypatch.setattr(loss_chunks, "chunk_tokens", lambda rows, device: 3)  # several chunks
    hidden, weight, targets, counts = logits_and_targets(dtype)
    nll, is_greedy = score_targets(
        hidden, weight, targets, part=VocabularyPart(0, 50), counts=counts
    )
    logits = (hidden @ weight[:50].t()).to(nll.dtype)
    rows = [row for row, count in enumerate(counts) for _ in range(count)]
    want = torch.log_softmax(logits, dim=-1)[rows].gather(1, targets[:, None])[:, 0]
    assert nll.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(-nll, want, rtol=0, atol=tolerance)
    assert is_greedy.tolist() == (logits.argmax(dim=1)[rows] == targets).tolist()


def test_every_position_has_one_target_unless_told_otherwise():
    hidden, weight, _, _ = logits_and_targets()
    best = (hidden @ weight[:50].t()).argmax(dim=1)
    nll, is_greedy = score_targets(hidden, weight, best, part=VocabularyPart(0, 50))
    assert nll.shape == (7,)
    assert is_greedy.all()


def test_of_equal_logits_the_lowest_token_is_the_greedy_one():
    weight = torch.tensor([[1.0], [2.0], [2.0], [2.0], [9.0]])  # the last row is padding
    targets = torch.tensor([0, 1, 2, 3])
    nll, is_greedy = score_targets(
        torch.ones(1, 1), weight, targets, part=VocabularyPart(0, 4), counts=[4]
    )
    assert is_greedy.tolist() == [False, True, False, False]
    assert nll[1] == nll[2] == nll[3] < nll[0]


def test_a_likelihood_below_the_smallest_float_is_still_a_number():
    nll, _ = score_targets(
        torch.tensor([[500.0]]),
        torch.tensor([[0.0], [1.0]]),
        torch.tensor([0]),
        part=VocabularyPart(0, 2),
    )
    assert nll.tolist() == [500.0]


def test_nothing_to_score_gives_nothing():
    nll, is_greedy = score_targets(
        torch.zeros(0, 4), torch.zeros(8, 4), torch.zeros(0).long(), part=VocabularyPart(0, 8)
    )
    assert nll.shape == is_greedy.shape == (0,)
