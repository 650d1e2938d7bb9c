"""Generation: the cache changes nothing, and every prompt gets its record."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.model.gpt2_model import GPT2Model
from megatron.mpu import RankGrid, Topology
from megatron.neox_arguments import ConfigError, NeoXArgs, RunConfig, resolve
from megatron.text_generation_utils import (
    generate_samples,
    generate_samples_from_prompt,
    generate_tokens,
    read_prompts,
)
from megatron.tokenizer import AbstractTokenizer, build_tokenizer
from tests.unit.model.shapes import small_model

LONGEST = 24
"""Positions of `small_model`."""

VARIANTS: dict[str, dict[str, Any]] = {
    "rotary": {},
    "learned positions": {"pos_emb": "learned"},
    "no positions": {"pos_emb": "none"},
    "grouped keys": {"num_kv_heads": 2},
    "gpt-j": {"gpt_j_residual": True},
}

ALONE = Topology(RankGrid(1, 1, 1), 0, None, None, None)


def build(**changes: Any) -> GPT2Model:
    """Weights large enough that the next token depends on the whole context."""
    settings = {"vocab_size": 512, "padded_vocab_size": 512, "init_method_std": 0.3, **changes}
    settings = {"output_layer_init_method": "normal", **settings}
    return GPT2Model(small_model(**settings), seed=5).eval()


def tokens_of(model: GPT2Model, context: Sequence[int], **options: Any) -> list[int]:
    settings = {"maximum_tokens": LONGEST, "stop_tokens": frozenset(), **options}
    return [token for token, _ in generate_tokens(model, context, **settings)]


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("context", [[7], [3, 141, 59, 26, 53]])
def test_greedy_with_the_cache_is_greedy_without_token_for_token(changes, context):
    model = build(**changes)
    cached = tokens_of(model, context)
    assert cached == tokens_of(model, context, recompute=True)
    assert len(cached) == LONGEST - len(context)
    assert len(set(cached)) >= 3


def test_the_logits_with_the_cache_are_those_without():
    model, context = build(), [3, 141, 59]
    options: dict[str, Any] = {"maximum_tokens": 12, "stop_tokens": frozenset()}
    cached = generate_tokens(model, context, **options)
    again = generate_tokens(model, context, recompute=True, **options)
    for (_, one), (_, other) in zip(cached, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_padding_of_the_vocabulary_is_never_generated():
    model = build(vocab_size=61, padded_vocab_size=512)
    options: dict[str, Any] = {"temperature": 5.0, "generator": torch.Generator().manual_seed(0)}
    pairs = generate_tokens(model, [1], maximum_tokens=23, stop_tokens=frozenset(), **options)
    assert all(token < 61 and logits.shape == (61,) for token, logits in pairs)


def test_a_stop_token_ends_the_text_and_is_not_part_of_it():
    model, context = build(), [7]
    free = tokens_of(model, context)
    stop = free[2]
    assert stop not in free[:2]
    assert tokens_of(model, context, stop_tokens=frozenset({stop})) == free[:2]


def test_the_text_ends_after_the_most_tokens_asked_for_or_where_the_model_ends():
    model = build()
    assert len(tokens_of(model, [7, 8], maximum_tokens=3)) == 3
    assert len(tokens_of(model, [7, 8], maximum_tokens=99)) == LONGEST - 2
    assert tokens_of(model, [7] * LONGEST) == []
    assert tokens_of(model, [7] * (LONGEST + 5)) == []


# prompts and records


@pytest.fixture(scope="module")
def model() -> GPT2Model:
    return build()


def config_with(**changes: Any) -> RunConfig:
    values: dict[str, Any] = {
        "num_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "seq_length": LONGEST,
        "max_position_embeddings": LONGEST,
        "train_micro_batch_size_per_gpu": 1,
        "train_iters": 1,
        "tokenizer_type": "CharLevelTokenizer",
        "optimizer": {"type": "Adam", "params": {"lr": 0.01}},
        "maximum_tokens": 5,
    }
    return resolve(NeoXArgs.from_dict({**values, **changes}), world_size=1)


def records(model: GPT2Model, *prompts: str, **changes: Any) -> list[dict[str, Any]]:
    config = config_with(**changes)
    return list(generate_samples_from_prompt(config, model, build_tokenizer(config), prompts))


def test_each_prompt_gets_a_record_in_order(model):
    first, second = records(model, "one", "two")
    assert (first["context"], second["context"]) == ("one", "two")
    assert first["length"] == second["length"] == 5
    assert not first["finished"]
    assert first["message"] is None
    assert first["duration_seconds"] > 0


def test_the_text_is_what_the_tokens_say(model):
    tokenizer: AbstractTokenizer = build_tokenizer(config_with())
    (record,) = records(model, "one")
    tokens = tokens_of(model, tokenizer.tokenize("one"), maximum_tokens=5)
    assert record["text"] == tokenizer.detokenize(tokens)


def test_the_end_of_document_finishes_a_text(model):
    config = config_with()
    tokenizer = build_tokenizer(config)
    tokens = tokens_of(model, tokenizer.tokenize("one"), maximum_tokens=5)
    place = next(n for n in range(1, 5) if tokens[n] not in tokens[:n])
    tokenizer.eod = tokens[place]
    (record,) = generate_samples_from_prompt(config, model, tokenizer, ["one"])
    assert record["finished"]
    assert record["length"] == place


def test_a_prompt_that_leaves_no_room_says_so(model):
    (record,) = records(model, "x" * LONGEST)
    assert record["text"] is None
    assert (record["length"], record["finished"]) == (0, False)
    assert record["message"] == "the prompt has 24 tokens, the model reads 24: no room"


def test_a_prompt_that_leaves_room_for_one_token_gets_one(model):
    (record,) = records(model, "x" * (LONGEST - 1))
    assert (record["length"], record["finished"], record["message"]) == (1, False, None)


def test_an_empty_prompt_starts_from_the_end_of_document(model):
    config = config_with()
    tokenizer = build_tokenizer(config)
    (record,) = records(model, "")
    tokens = tokens_of(model, [tokenizer.eod], maximum_tokens=5)
    assert record["text"] == tokenizer.detokenize(tokens)


def test_logits_are_in_the_record_where_asked_for(model):
    (record,) = records(model, "one", return_logits=True)
    assert [len(row) for row in record["logits"]] == [512] * 5


def test_recompute_in_the_configuration_changes_nothing(model):
    (cached,), (again,) = records(model, "one"), records(model, "one", recompute=True)
    assert cached["text"] == again["text"]


# files


def test_prompts_stand_between_the_ends_and_empty_ones_are_dropped(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("first\n\n  second \nthird")
    assert read_prompts(file, "\n") == ["first", "second", "third"]
    file.write_text("first\nline END second END")
    assert read_prompts(file, "END") == ["first\nline", "second"]


@pytest.mark.parametrize(
    ("content", "prompt_end", "message"),
    [
        (None, "\n", "sample_input_file: .*prompts.txt: No such file"),
        (b" \n\n", "\n", "sample_input_file: .* holds no prompt"),
        (b"good\n\xff", "\n", "sample_input_file: .* not UTF-8 at byte 5"),
        (b"good", "", "prompt_end: empty"),
    ],
)
def test_a_file_without_usable_prompts_is_refused(tmp_path, content, prompt_end, message):
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_prompts(file, prompt_end)


def generate_to(path: Path, model: GPT2Model, **changes: Any) -> list[dict[str, Any]]:
    config = config_with(sample_output_file=str(path), **changes)
    count = generate_samples(config, model, build_tokenizer(config), ALONE)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == count
    return lines


def test_a_file_of_prompts_becomes_a_file_of_records(tmp_path, model):
    (tmp_path / "prompts.txt").write_text("one\ntwo \u00e9\n")
    output = tmp_path / "out.jsonl"
    output.write_text("an older run\n")
    lines = generate_to(output, model, sample_input_file=str(tmp_path / "prompts.txt"))
    assert [line["context"] for line in lines] == ["one", "two \u00e9"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "prompts.txt"]


def test_unconditional_samples_differ_and_a_seed_repeats_them(tmp_path):
    model = build(vocab_size=128, padded_vocab_size=128)  # ASCII: every token shows in the text
    options = {"num_samples": 3, "temperature": 50.0}
    first = [line["text"] for line in generate_to(tmp_path / "a", model, **options)]
    assert len(set(first)) == 3
    assert [line["text"] for line in generate_to(tmp_path / "b", model, **options)] == first
    other = [line["text"] for line in generate_to(tmp_path / "c", model, seed=9, **options)]
    assert other != first


def test_an_output_that_cannot_be_written_is_refused(tmp_path, model):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"^sample_output_file: .* cannot be written \(Not a dir"):
        generate_to(tmp_path / "file/out", model)


def test_an_error_half_way_keeps_the_older_samples(tmp_path, model, monkeypatch):
    (tmp_path / "out").write_text("an older run\n")

    def fail(self, token_ids):
        raise RuntimeError("half-way")

    monkeypatch.setattr(AbstractTokenizer, "detokenize", fail)
    with pytest.raises(RuntimeError, match="half-way"):
        generate_to(tmp_path / "out", model)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_text() == "an older run\n"


def test_a_conversation_answers_until_the_input_ends(model, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n" + "x" * LONGEST + "\n"))
    config = config_with(text_gen_type="interactive")
    assert generate_samples(config, model, build_tokenizer(config), ALONE) == 2
    said = capsys.readouterr().out
    (record,) = records(model, "one")
    assert f"one{record['text']}\n" in said
    assert "[the prompt has 24 tokens, the model reads 24: no room]" in said
