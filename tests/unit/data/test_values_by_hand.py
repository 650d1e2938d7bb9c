"""Shares, splits and blends in numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megatron.data.batch import make_batch
from megatron.data.blendable_dataset import apportion
from megatron.data.shares import split_boundaries, weights_by_num_docs


@pytest.mark.parametrize(
    ("shares", "total", "expected"),
    [
        # exact 3.5, 2.1, 1.4: one is missing, and 0.5 is the largest remainder
        ([0.5, 0.3, 0.2], 7, [4, 2, 1]),
        # 0.6, 0.6, 0.8: two are missing
        ([0.3, 0.3, 0.4], 2, [1, 0, 1]),
        ([0.25, 0.75], 4, [1, 3]),
        ([0.0, 1.0], 3, [0, 3]),
    ],
)
def test_the_largest_remainders_get_what_is_missing(shares, total, expected):
    assert apportion(np.array(shares), total).tolist() == expected


@pytest.mark.parametrize(
    ("shares", "size", "expected"),
    [
        ([0.5, 0.3, 0.2], 10, [0, 5, 8, 10]),
        ([0.969, 0.03, 0.001], 1000, [0, 969, 999, 1000]),
        ([0.969, 0.03, 0.001], 40, [0, 39, 40, 40]),
        # 1.5 is rounded to 2 twice: one too many, which moves every boundary
        ([0.25, 0.25, 0.5], 6, [0, 1, 3, 6]),
    ],
)
def test_documents_are_cut_where_the_rounded_shares_end(shares, size, expected):
    assert split_boundaries(shares, size) == expected


def test_weights_by_documents_follow_the_formula():
    # n^1 (1 - n / N) of 1 and 3 of 4: 0.25 * 0.75 and 0.75 * 0.25
    assert weights_by_num_docs([1, 3], alpha=1.0) == pytest.approx([0.5, 0.5])
    # alpha 0: 0.75 and 0.25
    assert weights_by_num_docs([1, 3], alpha=0.0) == pytest.approx([0.75, 0.25])
    # shares 0.1, 0.2, 0.7 to the power 0.5, times 0.9, 0.8, 0.3
    expected = [0.284605, 0.357771, 0.250998]
    total = sum(expected)
    found = weights_by_num_docs([10, 20, 70], alpha=0.5)
    assert found == pytest.approx([number / total for number in expected], rel=1e-5)


def test_labels_are_the_next_tokens_and_the_mask_is_of_the_inputs():
    tokens = np.array([[5, 0, 7, 8, 0], [1, 2, 3, 0, 4]])
    batch = make_batch(tokens, np.array([1, 0]), eod_token=0, eod_mask_loss=True)
    assert batch.tokens.tolist() == [[5, 0, 7, 8], [1, 2, 3, 0]]
    assert batch.labels.tolist() == [[0, 7, 8, 0], [2, 3, 0, 4]]
    # the end of a document is learnt; what follows from it is not
    assert batch.loss_mask.tolist() == [[1, 0, 1, 1], [1, 1, 1, 0]]
    assert batch.domain_ids.tolist() == [1, 0]
    whole = make_batch(tokens, np.array([1, 0]), eod_token=0)
    assert torch.equal(whole.loss_mask, torch.ones(2, 4))
