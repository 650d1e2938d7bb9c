"""Contexts and endings in rows: nothing is lost, and nothing sees what it must not see."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron.errors import NotFiniteError, TaskError
from megatron.eval_tasks import packing
from megatron.eval_tasks.likelihood import score_pairs
from megatron.eval_tasks.packing import cut_batches, fit_window, make_rows, pack_rows
from megatron.model.gpt2_model import GPT2Model
from megatron.sizing.model_shape import ModelShape
from tests.unit.model.shapes import small_model

WINDOW = 12
TOKENS = st.integers(0, 5)
PAIRS = st.lists(
    st.tuples(
        st.lists(TOKENS, min_size=1, max_size=2 * WINDOW),
        st.lists(TOKENS, min_size=1, max_size=WINDOW),
    ),
    min_size=1,
    max_size=12,
)


def read_back(rows) -> list[tuple[tuple[int, ...], list[tuple[list[int], list[int], int]]]]:
    """For each ending of a batch: owners, and for each target what is read before it.

    That is the tokens that the scored place may attend to, where they stand, and the target.
    """
    packed = pack_rows(rows)
    width = packed.tokens.shape[1]
    places = [
        place
        for place, count in zip(packed.scored.tolist(), packed.counts, strict=True)
        for _ in range(count)
    ]
    found = [(owners, []) for row in rows for owners in row.owners]
    for place, target, ending in zip(
        places, packed.targets.tolist(), packed.endings.tolist(), strict=True
    ):
        row, column = divmod(place, width)
        if packed.attention_mask is None:
            seen = torch.arange(width) <= column
        else:
            seen = packed.attention_mask[row, 0, column]
        positions = torch.arange(width) if packed.positions is None else packed.positions[row]
        read = packed.tokens[row][seen].tolist(), positions[seen].tolist()
        found[ending][1].append((*read, target))
    return found


@given(pairs=PAIRS, max_tokens=st.integers(1, 80))
def test_every_ending_is_read_once_behind_its_context_and_nothing_else(pairs, max_tokens):
    answered = {}
    for batch in cut_batches(make_rows(pairs, window=WINDOW), max_tokens=max_tokens):
        for owners, reads in read_back(batch):
            for number in owners:
                assert number not in answered
                answered[number] = reads
    assert sorted(answered) == list(range(len(pairs)))
    for number, (context, ending) in enumerate(pairs):
        text = (context + ending)[-(WINDOW + 1) :]
        first = len(text) - len(ending)
        want = [(text[:end], list(range(end)), text[end]) for end in range(first, len(text))]
        assert answered[number] == want


@given(pairs=PAIRS, max_tokens=st.integers(1, 80))
def test_batches_hold_every_row_once_and_keep_to_the_budget(pairs, max_tokens):
    rows = make_rows(pairs, window=WINDOW)
    batches = list(cut_batches(rows, max_tokens=max_tokens))
    assert sorted((row for batch in batches for row in batch), key=id) == sorted(rows, key=id)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * batch[0].length <= max_tokens
        assert batch[0].length == max(row.length for row in batch)


def test_a_context_is_read_once_for_all_its_endings_and_equal_pairs_count_once():
    (row,) = make_rows([([1, 2], [3, 4]), ([1, 2], [5]), ([1, 2], [3, 4])], window=9)
    assert row.endings == ((3, 4), (5,))
    assert row.owners == ((0, 2), (1,))
    assert row.length == 3
    assert not row.needs_mask


def test_many_endings_of_a_short_context_take_several_rows(monkeypatch):
    monkeypatch.setattr(packing, "SHORT_ROW", 8)
    rows = make_rows([([1, 2], [token] * 4) for token in range(5)], window=9)
    assert [row.length for row in rows] == [8, 8, 5]


def test_a_row_may_be_as_long_as_its_context_twice(monkeypatch):
    monkeypatch.setattr(packing, "SHORT_ROW", 4)
    rows = make_rows([([1] * 6, [token] * 4) for token in range(3)], window=9)
    assert [row.length for row in rows] == [12, 9]


def test_a_long_masked_row_counts_more_than_once(monkeypatch):
    monkeypatch.setattr(packing, "MASK_ROW", 4)
    rows = make_rows([([k, k], [3, 4, 5, 6]) for k in range(4)] * 1, window=9)
    masked = make_rows([([k, k], e) for k in range(4) for e in ([3] * 4, [4] * 4)], window=9)
    assert [len(batch) for batch in cut_batches(rows, max_tokens=16)] == [3, 1]
    assert [len(batch) for batch in cut_batches(masked, max_tokens=32)] == [2, 2]


def test_contexts_lose_their_beginning_and_endings_are_never_cut():
    assert fit_window([1, 2, 3, 4], [5, 6], 4) == (2, 3, 4)
    assert fit_window([1, 2], [5, 6, 7, 8], 4) == (2,)
    with pytest.raises(TaskError, match="ending has 5 tokens, the model's context 4"):
        fit_window([1], [5, 6, 7, 8, 9], 4)


def tiny_model(pos_emb: str) -> GPT2Model:
    config = ModelShape(
        num_layers=2,
        hidden_size=16,
        num_attention_heads=4,
        num_kv_heads=2,
        head_dim=4,
        mlp_inner_size=32,
        is_gated_mlp=False,
        max_position_embeddings=WINDOW,
        vocab_size=30,
        padded_vocab_size=32,
        pos_emb=pos_emb,
        qk_norm="none",
        norm_epsilon=1e-5,
        use_bias_in_attn_output=True,
        checkpoint_num_layers=0,
        rotary_dim=4,
        no_weight_tying=True,
    )
    model = GPT2Model(config, seed=3).double().eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    return model


@pytest.mark.parametrize("pos_emb", ["rotary", "learned", "sinusoidal", "none"])
@pytest.mark.parametrize("max_batch_tokens", [1, 40, 1000])
def test_packed_scores_are_those_of_one_text_at_a_time(pos_emb, max_batch_tokens):
    model = tiny_model(pos_emb)
    generator = torch.Generator().manual_seed(2)

    def tokens(count: int) -> list[int]:
        return torch.randint(0, 30, (count,), generator=generator).tolist()

    contexts = [tokens(count) for count in (1, 3, 7, 11, 15)]
    pairs = [(context, tokens(count)) for context in contexts for count in (1, 4, 6, 12)]
    reported = {}
    scores = score_pairs(
        model, pairs, max_batch_tokens=max_batch_tokens, on_score=reported.__setitem__
    )
    assert reported == dict(enumerate(scores))
    for (context, ending), (log_likelihood, is_greedy) in zip(pairs, scores, strict=True):
        text = torch.tensor([(context + ending)[-(WINDOW + 1) :]])
        with torch.no_grad():
            logits = model(text[:, :-1])[0, -len(ending) :]
        want = torch.log_softmax(logits, dim=-1)[range(len(ending)), ending].sum()
        assert log_likelihood == pytest.approx(float(want), abs=1e-9)
        assert is_greedy == (logits.argmax(dim=-1).tolist() == ending)


def test_scores_that_are_not_finite_are_refused():
    model = GPT2Model(small_model(), seed=5).eval()
    with torch.no_grad():
        model.get_parameter("6.final_linear.weight")[3, 0] = float("nan")
    with pytest.raises(NotFiniteError, match=r"^loglikelihood: the model's logits are not"):
        score_pairs(model, [([1, 2], [3, 4])], max_batch_tokens=64)
