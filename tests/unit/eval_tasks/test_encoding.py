"""Texts to tokens as lm-eval's own models do it."""

from __future__ import annotations

import importlib.util

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.errors import TaskError
from megatron.eval_tasks.encoding import decode_text, encode_pairs
from megatron.tokenizer.character_level import CharLevelTokenizer


class Words(CharLevelTokenizer):
    """Takes runs of spaces and the letter that follows as one token, as BPE tokenizers may."""

    def _encode_batch(self, texts):
        return [_words(text) for text in texts]


def _words(text: str) -> list[int]:
    tokens: list[int] = []
    start = 0
    while start < len(text):
        end = start
        while end < len(text) - 1 and text[end] == " ":
            end += 1
        tokens.append(sum(map(ord, text[start : end + 1])) % 500)
        start = end + 1
    return tokens


TEXT = st.text("ab ", max_size=6)


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
@given(texts=st.lists(st.tuples(TEXT, TEXT.filter(str.strip)), min_size=1, max_size=6))
def test_pairs_are_split_as_template_lm_splits_them(texts):
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM

    class Reference(TemplateLM):
        eot_token_id = 97

        def tok_encode(self, string, add_special_tokens=None, **kwargs):
            return _words(string)

        def _loglikelihood_tokens(self, requests, **kwargs):
            return [(context, ending) for _, context, ending in requests]

        def loglikelihood_rolling(self, requests, disable_tqdm=False): ...

        def generate_until(self, requests, disable_tqdm=False): ...

    # where an empty context and a prefix leave nothing, or white space alone stands before an
    # ending, lm-eval fails
    texts = [(c, e) for c, e in texts if (c == "" or c.strip()) and not (c == "" and e == "a")]
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in texts]
    want = Reference().loglikelihood(requests, disable_tqdm=True)
    want = [pair for pair in want if pair[1]]
    if len(want) == len(texts):
        assert encode_pairs(texts, Words(), prefix=97) == want


def test_white_space_before_an_ending_belongs_to_it():
    tokenizer = CharLevelTokenizer()
    ((context, ending),) = encode_pairs([("ab \n", "c")], tokenizer, prefix=0)
    assert tokenizer.detokenize(context) == "ab"
    assert tokenizer.detokenize(ending) == " \nc"


def test_an_empty_context_is_the_prefix_unless_the_ending_begins_with_it():
    tokenizer = CharLevelTokenizer()
    assert encode_pairs([("", "ab"), (" ", "b")], tokenizer, prefix=7) == [
        ([7], [97, 98]),
        ([7], [32, 98]),
    ]
    assert encode_pairs([("", "ab")], tokenizer, prefix=97) == [([97], [98])]


def test_what_spans_context_and_ending_is_scored_as_lm_eval_scores_it():
    assert encode_pairs([("a  b", " cc")], Words(), prefix=0) == [
        (_words("a  b"), _words(" cc")),
    ]
    context, ending = encode_pairs([("a b ", "cd")], Words(), prefix=0)[0]
    assert (context, ending) == (_words("a b"), _words(" cd"))


class Pairs(CharLevelTokenizer):
    """Takes two letters as one token."""

    def _encode_batch(self, texts):
        return [
            [sum(text[n : n + 2].encode()) % 500 for n in range(0, len(text), 2)] for text in texts
        ]


@pytest.mark.parametrize(
    ("tokenizer", "ending", "reason"),
    [
        (CharLevelTokenizer(), "", "has no tokens; correct doc_to_text"),
        (Pairs(), "d", "the tokenizer joins the ending 'd' and its context"),
    ],
)
def test_why_an_ending_adds_no_token_is_told(tokenizer, ending, reason):
    with pytest.raises(TaskError, match=reason) as raised:
        encode_pairs([("abc", ending)], tokenizer, prefix=0)
    assert "which ends with 'abc'" in str(raised.value)


def test_written_text_has_no_end_of_document_in_it():
    tokenizer = CharLevelTokenizer()
    assert decode_text(tokenizer, [97, tokenizer.eod, 98]) == "ab"
