"""Generation of batches: nothing depends on the cache or on the neighbours, and all rules end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from megatron.errors import NotFiniteError
from megatron.generation.batch import Completion, StopRules, generate_batch
from megatron.generation.decoder import BatchDecoder
from megatron.generation.sampling import SamplingParameters, sample_generator
from megatron.model.gpt2_model import GPT2Model
from megatron.tokenizer.character_level import CharLevelTokenizer
from tests.unit.model.shapes import small_model

LONGEST = 24
"""Positions of `small_model`."""

VARIANTS: dict[str, dict[str, Any]] = {
    "rotary": {},
    "rotary, whole heads": {"rotary_dim": 8},
    "learned positions": {"pos_emb": "learned", "rotary_dim": 0},
    "sinusoidal positions": {"pos_emb": "sinusoidal", "rotary_dim": 0},
    "no positions": {"pos_emb": "none", "rotary_dim": 0},
    "grouped keys": {"num_kv_heads": 2},
    "positions from 2": {
        **{"pos_emb": "learned", "rotary_dim": 0, "opt_pos_emb_offset": 2},
        "max_position_embeddings": LONGEST + 2,
    },
    "qwen3-like": {
        **{"norm": "rmsnorm", "qk_norm": "head", "num_kv_heads": 2},
        **{"head_dim": 12, "rotary_dim": 12},
    },
    "gpt-j": {"gpt_j_residual": True},
}
PROMPTS = [[3, 41, 59, 26, 53], [7], [9, 9, 12], [1, 2, 3, 4, 5, 6, 7, 8], [60]]
SAMPLING = SamplingParameters(temperature=1.5, top_k=40, top_p=0.95)


def build(**changes: Any) -> GPT2Model:
    """Weights large enough that the next token depends on the whole context."""
    settings = {"init_method_std": 0.3, "output_layer_init_method": "normal", **changes}
    return GPT2Model(small_model(**settings), seed=5).eval()


def show(tokens: Sequence[int]) -> str:
    """One letter a token."""
    return "".join(chr(ord("0") + token) for token in tokens)


def run(model: GPT2Model, *prompts: Sequence[int], **options: Any) -> list[Completion]:
    return generate_batch(model, prompts, **{"decode": show, "maximum_tokens": 99, **options})


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    return [sample_generator(seed, number) for number in range(count)]


@pytest.fixture(scope="module")
def model() -> GPT2Model:
    return build()


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
class TestEveryVariant:
    @pytest.mark.parametrize("prompt", PROMPTS[:2])
    def test_the_cache_changes_neither_tokens_nor_logits(self, changes, prompt):
        model = build(**changes)
        (cached,) = run(model, prompt, keep_logits=True)
        (again,) = run(model, prompt, keep_logits=True, recompute=True)
        assert cached.tokens == again.tokens
        assert len(cached.tokens) == LONGEST - len(prompt)
        assert len(set(cached.tokens)) >= 3
        scale = cached.logits.abs().max()
        torch.testing.assert_close(cached.logits, again.logits, rtol=0, atol=1e-5 * scale)

    @pytest.mark.parametrize("recompute", [False, True])
    def test_a_ragged_batch_gives_what_its_rows_give_alone(self, changes, recompute):
        model = build(**changes)
        together = run(model, *PROMPTS, keep_logits=True, recompute=recompute)
        for prompt, row in zip(PROMPTS, together, strict=True):
            (alone,) = run(model, prompt, keep_logits=True)
            assert row.tokens == alone.tokens
            scale = alone.logits.abs().max()
            torch.testing.assert_close(row.logits, alone.logits, rtol=0, atol=1e-5 * scale)

    def test_sampled_text_does_not_depend_on_the_batch(self, changes):
        model, sources = build(**changes), generators(len(PROMPTS))
        together = run(model, *PROMPTS, sampling=SAMPLING, generators=sources)
        for number, prompt in enumerate(PROMPTS):
            source = [sample_generator(0, number)]
            (alone,) = run(model, prompt, sampling=SAMPLING, generators=source)
            assert together[number].tokens == alone.tokens


def test_greedy_tokens_are_the_argmax_of_the_whole_text(model):
    (result,) = run(model, PROMPTS[0])
    text = [*PROMPTS[0], *result.tokens]
    with torch.no_grad():
        best = model(torch.tensor([text[:-1]])).argmax(-1)[0]
    assert best[len(PROMPTS[0]) - 1 :].tolist() == list(result.tokens)


def test_a_long_prompt_is_prefilled_in_pieces_with_the_same_result(model, monkeypatch):
    whole = run(model, *PROMPTS, keep_logits=True)
    monkeypatch.setattr("megatron.generation.decoder._TOKENS_AT_ONCE", 15)  # 3 of each of 5 rows
    pieces = run(model, *PROMPTS, keep_logits=True)
    for one, other in zip(whole, pieces, strict=True):
        assert one.tokens == other.tokens
        torch.testing.assert_close(one.logits, other.logits, rtol=0, atol=1e-4)


def test_rows_that_have_ended_leave_the_batch(model, monkeypatch):
    sizes = []
    next_logits = BatchDecoder.next_logits

    def spy(decoder: BatchDecoder) -> torch.Tensor:
        logits = next_logits(decoder)
        sizes.append(len(logits))
        return logits

    monkeypatch.setattr(BatchDecoder, "next_logits", spy)
    results = run(model, *PROMPTS[:4], maximum_tokens=[2, 9, 4, 2])
    assert [len(result.tokens) for result in results] == [2, 9, 4, 2]
    assert sizes == [4, 4, 2, 2, 1, 1, 1, 1, 1]
    for prompt, result in zip(PROMPTS, results, strict=False):
        assert result.tokens == run(model, prompt)[0].tokens[: len(result.tokens)]


def test_padding_of_the_vocabulary_is_never_generated(model):
    hot = SamplingParameters(temperature=50.0)
    results = run(model, *[[1]] * 20, sampling=hot, generators=generators(20), keep_logits=True)
    assert max(max(result.tokens) for result in results) == 60
    assert results[0].logits.shape == (LONGEST - 1, 61)


def test_the_repetition_penalty_counts_prompt_and_text(model):
    strong = SamplingParameters(repetition_penalty=1e6)
    results = run(model, *PROMPTS, sampling=strong)
    for prompt, result in zip(PROMPTS, results, strict=True):
        together = [*set(prompt), *result.tokens]
        assert len(set(together)) == len(together)  # 24 of 61 tokens: none has to come twice
        assert result.tokens == run(model, prompt, sampling=strong)[0].tokens


def test_the_result_has_no_more_tokens_than_asked_for_or_than_the_model_reads(model):
    few, many, none = run(model, [7, 8], [7, 8], [7, 8], maximum_tokens=[3, 99, 0])
    assert (len(few.tokens), few.reason) == (3, "maximum_tokens")
    assert (len(many.tokens), many.reason) == (LONGEST - 2, "context")
    assert (none.tokens, none.text, none.reason) == ((), "", "maximum_tokens")
    (last,) = run(model, [7] * (LONGEST - 1))
    assert (len(last.tokens), last.reason) == (1, "context")


def test_time_is_counted_to_the_end_of_each_text(model):
    short, long = run(model, [7], [7], maximum_tokens=[1, 20])
    assert 0 < short.duration_seconds < long.duration_seconds


# what ends a text


def test_a_stop_token_ends_the_text_and_is_not_part_of_it(model):
    (free,) = run(model, [7])
    place = next(n for n in range(2, 9) if free.tokens[n] not in free.tokens[:n])
    stop = free.tokens[place]
    (result,) = run(model, [7], stop=StopRules(tokens=frozenset({stop})))
    assert result.tokens == free.tokens[:place]
    assert result.text == show(free.tokens[:place])
    assert (result.reason, result.stopped_by) == ("stop_token", stop)


def test_a_stop_string_across_tokens_is_cut_out_of_the_text(model):
    (free,) = run(model, [7])
    stop = show(free.tokens[3:6])
    assert free.text.find(stop) == 3
    (result,) = run(model, [7], stop=StopRules(strings=("never", stop)))
    assert result.text == show(free.tokens[:3])
    assert result.tokens == free.tokens[:6]
    assert (result.reason, result.stopped_by) == ("stop_string", stop)


def test_a_stop_string_that_never_comes_changes_nothing(model):
    (free,) = run(model, [7])
    (result,) = run(model, [7], stop=StopRules(strings=("never",)))
    assert (result.text, result.reason) == (free.text, free.reason)
    assert result.stopped_by is None


def test_rows_may_have_rules_of_their_own(model):
    (free,) = run(model, [7])
    stop = StopRules(strings=(show(free.tokens[2:4]),))
    first, second = run(model, [7], [7], stop=[StopRules(), stop])
    assert first.text == free.text
    assert second.text == free.text[:2]


def test_a_wish_to_stop_ends_all_texts_after_the_token_at_hand(model):
    answers = iter([False, False, True])
    results = run(model, *PROMPTS, is_interrupted=lambda: next(answers))
    assert {result.reason for result in results} == {"interrupted"}
    assert {len(result.tokens) for result in results} == {3}


# text as it comes


def test_pieces_of_text_add_up_to_the_text_of_each_row(model):
    said: dict[int, list[str]] = {}
    results = run(
        model,
        *PROMPTS,
        on_text=lambda row, text: said.setdefault(row, []).append(text),
        stop=StopRules(strings=("zz",)),
    )
    for number, result in enumerate(results):
        assert "".join(said[number]) == result.text
        assert len(said[number]) > 5


@pytest.mark.parametrize(("decodes_alone", "number_of_words"), [(False, 0), (True, 1)])
def test_a_space_before_the_first_word_is_text_unless_words_are_decoded_alone(
    model, decodes_alone, number_of_words
):
    def words(tokens: Sequence[int]) -> str:
        return " ".join(f"w{token}" for token in tokens)

    stop = StopRules(strings=(" ",))
    (result,) = run(model, [7], decode=words, stop=stop, decodes_alone=decodes_alone)
    assert len(result.text.split()) == number_of_words
    assert result.reason == "stop_string"


def test_bytes_that_are_no_text_end_up_in_the_text_as_the_tokenizer_shows_them():
    model = build(vocab_size=512, padded_vocab_size=512)
    decode = CharLevelTokenizer().detokenize
    (result,) = run(model, [7], decode=decode)
    assert "\ufffd" in result.text
    assert result.text == decode(result.tokens)


def test_training_goes_on_after_generation_that_made_the_table_of_angles_grow():
    model = build()
    run(model, [3, 41, 59], maximum_tokens=8)
    model.train()
    tokens = torch.tensor([[3, 41, 59]])
    model(tokens, tokens, torch.ones(1, 3))[0].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("penalty", [1.0, 2.0])
def test_logits_that_are_not_finite_end_the_generation_in_one_line(penalty):
    model = build()
    with torch.no_grad():
        model.get_parameter("6.final_linear.weight")[3, 0] = float("nan")
    with pytest.raises(NotFiniteError, match=r"^generation: the model's logits are not finite"):
        run(model, [1, 2], sampling=SamplingParameters(repetition_penalty=penalty))
