"""Each way of computing attention gives what its direct formula gives, and the same gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron.model import attend as attend_module
from megatron.model import attention_span as span_module
from megatron.model.attend import _attend_in_blocks, attend
from megatron.model.attention_span import AttentionSpan, Documents, Reach
from megatron.model.flexible_attention import flexible_attention
from megatron.model.forward_context import ForwardContext
from megatron.model.relative_bias import make_relative_bias
from tests.parts import allocated
from tests.unit.model.attention_by_hand import attention_by_hand, everything
from tests.unit.model.shapes import small_model

HEADS, GROUPS, LENGTH, SIZE = 4, 2, 24, 16
DOCUMENTS = ((5, 1, 1, 17), (24,), (10, 14))
SEES: dict[str, tuple[Reach | None, Callable[[int, int], bool]]] = {
    "everything": (None, everything),
    "window": (Reach(3, 1), lambda query, key: key >= query - 3),
    "blocks": (Reach(1, 4), lambda query, key: key // 4 >= query // 4 - 1),
    "own block": (Reach(0, 3), lambda query, key: key // 3 == query // 3),
}
BIASES = ("none", "alibi", "rpe")


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Several blocks of queries, and documents that are merged as well as not."""
    monkeypatch.setattr(attend_module, "_BLOCK", 8)
    monkeypatch.setattr(attend_module, "_LARGEST_BIAS", 7 * len(DOCUMENTS) * HEADS * LENGTH)
    monkeypatch.setattr(span_module, "_SHORT", 8)


def offsets_of(documents) -> Tensor:
    return torch.tensor([[p for n in lengths for p in range(n)] for lengths in documents])


class Case:
    def __init__(self, sees: str, kind: str, documents):
        generator = torch.Generator().manual_seed(5)
        shape = (len(DOCUMENTS), LENGTH)
        self.inputs = [
            torch.randn(*shape, heads, SIZE, generator=generator).requires_grad_()
            for heads in (HEADS, GROUPS, GROUPS)
        ]
        config = small_model(
            pos_emb=kind,
            rotary_dim=0,
            head_dim=SIZE,
            max_position_embeddings=LENGTH,
            rpe_num_buckets=6,
            rpe_max_distance=16,
        )
        bias = make_relative_bias(config)
        self.parameters = list(self.inputs)
        if isinstance(bias, nn.Module):
            nn.init.normal_(allocated(bias).weight, generator=generator)
            self.parameters.append(bias.weight)
        reach, self.sees = SEES[sees]
        self.span = AttentionSpan(reach, bias)
        self.documents = None if documents is None else Documents(offsets_of(documents))
        self.lengths = documents or ((LENGTH,),) * len(DOCUMENTS)
        self.context = ForwardContext(None, None, True, is_whole=True, documents=self.documents)

    def transposed(self) -> list[Tensor]:
        return [tensor.transpose(1, 2) for tensor in self.inputs]

    def by_hand(self) -> Tensor:
        query, *others = self.transposed()
        key, value = (other.repeat_interleave(HEADS // GROUPS, dim=1) for other in others)
        bias = None
        if self.span.bias is not None:
            values = self.span.bias.reader(LENGTH, query.device)(torch.arange(LENGTH)[None])[:, 0]
            bias = partial(values.select, 1)
        return attention_by_hand(
            query, key, value, documents=self.lengths, sees=self.sees, bias=bias
        )

    def assert_equal(self, got: Tensor) -> None:
        want = self.by_hand()
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
        weights = torch.linspace(-1, 1, want.numel()).view(want.shape)
        one, two = (
            torch.autograd.grad((result * weights).sum(), self.parameters) for result in (got, want)
        )
        for gradient, expected in zip(one, two, strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


every_case = [
    pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["rows", "documents"]),
    pytest.mark.parametrize("kind", BIASES),
    pytest.mark.parametrize("sees", SEES),
]


def in_every_case(test):
    for mark in every_case:
        test = mark(test)
    return test


@in_every_case
def test_whole_rows_are_what_the_formula_gives(sees, kind, documents):
    case = Case(sees, kind, documents)
    case.assert_equal(attend(*case.transposed(), case.context, case.span, dropout=0.0))


@in_every_case
def test_blocks_of_queries_with_all_keys_give_the_same(sees, kind, documents):
    case = Case(sees, kind, documents)
    product = partial(F.scaled_dot_product_attention, enable_gqa=True)
    case.assert_equal(_attend_in_blocks(*case.transposed(), case.context, case.span, product))


@in_every_case
def test_flexible_attention_gives_the_same(sees, kind, documents):
    case = Case(sees, kind, documents)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that it is not compiled
        inputs = [tensor.detach() for tensor in case.transposed()]  # no gradients on a CPU
        got = flexible_attention(*inputs, case.documents, case.span, compiled=False)
        torch.testing.assert_close(got, case.by_hand(), rtol=1e-5, atol=1e-6)


def test_short_neighbours_are_computed_at_once_and_long_documents_alone():
    pieces = Documents(offsets_of(DOCUMENTS)).pieces
    assert pieces == [(0, 7, False), (7, 24, True), (24, 48, True), (48, 58, True), (58, 72, True)]


def test_a_plain_causal_pass_is_one_call_of_torch_bit_for_bit():
    case = Case("everything", "none", None)
    got = attend(*case.transposed(), case.context, case.span, dropout=0.0)
    want = F.scaled_dot_product_attention(*case.transposed(), is_causal=True, enable_gqa=True)
    assert torch.equal(got, want)


def test_biases_without_gradients_are_kept_for_documents_of_every_length():
    case = Case("window", "alibi", DOCUMENTS)
    for _ in range(2):
        attend(*case.transposed(), case.context, case.span, dropout=0.0)
    assert len(case.span.kept) == 1
    assert len(case.documents.kept) == 1


def test_dropout_in_pieces_drops_weights_and_keeps_the_mean():
    case = Case("window", "none", DOCUMENTS)
    torch.manual_seed(0)
    with torch.no_grad():
        results = [
            attend(*case.transposed(), case.context, case.span, dropout=0.5) for _ in range(400)
        ]
    mean = torch.stack(results).mean(dim=0)
    assert not torch.equal(results[0], results[1])
    torch.testing.assert_close(mean, case.by_hand().detach(), rtol=0, atol=0.35)
