import numpy as np
import pytest
import torch

from megatron.data.batch import make_batch
from megatron.data.errors import DataError

TOKENS = np.array([[5, 0, 7, 8], [1, 2, 0, 0]])


def test_labels_are_the_tokens_that_follow():
    batch = make_batch(TOKENS, np.array([3, 1]), eod_token=0)
    assert batch.tokens.tolist() == [[5, 0, 7], [1, 2, 0]]
    assert batch.labels.tolist() == [[0, 7, 8], [2, 0, 0]]
    assert batch.loss_mask.tolist() == [[1, 1, 1], [1, 1, 1]]
    assert batch.domain_ids.tolist() == [3, 1]
    assert batch.tokens.is_contiguous()
    assert batch.labels.is_contiguous()
    types = [batch.tokens, batch.labels, batch.loss_mask, batch.domain_ids]
    assert [tensor.dtype for tensor in types] == [
        torch.int64,
        torch.int64,
        torch.float32,
        torch.int64,
    ]


def test_the_mask_leaves_out_what_follows_an_end_of_document():
    batch = make_batch(TOKENS, np.array([0, 0]), eod_token=0, eod_mask_loss=True)
    assert batch.loss_mask.tolist() == [[1, 0, 1], [1, 1, 0]]


def test_a_batch_moves_as_a_whole():
    batch = make_batch(TOKENS, np.array([0, 0]), eod_token=0).to("meta")
    assert batch.labels.device.type == batch.domain_ids.device.type == "meta"


@pytest.mark.parametrize("token", [9, -1])
def test_a_token_outside_the_vocabulary_is_named_with_its_domain(token):
    tokens = TOKENS.copy()
    tokens[1, 3] = token  # the last label counts too
    with pytest.raises(DataError, match=f"domain code: token id {token} is not in .* of 9 ids"):
        make_batch(tokens, np.array([0, 1]), eod_token=0, vocab_size=9, domains=("books", "code"))
    make_batch(TOKENS, np.array([0, 1]), eod_token=0, vocab_size=9)


def test_documents_begin_after_an_end_which_belongs_to_what_it_ends():
    tokens = np.array([[5, 0, 6, 7, 0, 0, 8, 9], [0, 1, 2, 3, 4, 5, 6, 0]])
    batch = make_batch(tokens, np.array([0, 0]), eod_token=0, tells_documents=True)
    assert batch.document_offsets.tolist() == [[0, 1, 0, 1, 2, 0, 0], [0, 0, 1, 2, 3, 4, 5]]
    assert batch.document_offsets.dtype == torch.int64
    assert batch.to("meta").document_offsets.device.type == "meta"


def test_without_need_a_batch_does_not_tell_documents_apart():
    assert make_batch(TOKENS, np.array([0, 0]), eod_token=0).document_offsets is None
