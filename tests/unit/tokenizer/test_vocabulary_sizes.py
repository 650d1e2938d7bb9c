"""How many ids there are, and how many rows are made for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron.tokenizer import padded_vocab_size
from megatron.tokenizer.byte_pair import HFTokenizer

tokenizers = pytest.importorskip("tokenizers")


def word_tokenizer(path: Path, words: dict[str, int]) -> HFTokenizer:
    model = tokenizers.models.WordLevel(words, unk_token="<|endoftext|>")
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.save(str(path))
    return HFTokenizer(str(path))


def test_ids_with_gaps_need_a_row_each_up_to_the_largest(tmp_path):
    tokenizer = word_tokenizer(tmp_path / "a.json", {"<|endoftext|>": 2, "a": 0, "b": 9})
    assert tokenizer.vocab_size == 10
    assert tokenizer.tokenize("a b b") == [0, 9, 9]
    assert (tokenizer.eod, tokenizer.pad) == (2, 2)


def test_padding_has_an_id_of_its_own_where_there_is_one(tmp_path):
    words = {"<|endoftext|>": 0, "<|padding|>": 1, "a": 2}
    tokenizer = word_tokenizer(tmp_path / "a.json", words)
    assert (tokenizer.eod, tokenizer.pad, tokenizer.vocab_size) == (0, 1, 3)


@pytest.mark.parametrize(
    ("size", "divisor", "rows"),
    [(50277, 128, 50304), (50304, 128, 50304), (1, 8, 8), (7, 1, 7), (129, 128, 256)],
)
def test_rows_are_the_next_multiple(size, divisor, rows):
    assert padded_vocab_size(size, divisor) == rows
