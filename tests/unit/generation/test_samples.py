"""Prompts become records, and records become lines."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.generation.batch import generate_batch
from megatron.generation.program import (
    check_generation_files,
    generate_samples,
    generate_samples_from_prompt,
    generation_notes,
    read_prompts,
)
from megatron.generation.prompts import fit_prompt
from megatron.model.gpt2_model import GPT2Model
from megatron.neox_arguments import ConfigError, NeoXArgs, RunConfig, resolve
from megatron.tokenizer import AbstractTokenizer, build_tokenizer
from tests.unit.model.shapes import small_model

LONGEST = 24
"""Positions of `small_model`."""


def build(**changes: Any) -> GPT2Model:
    """ASCII alone, without ends of documents: every token shows in the text."""
    settings = {"vocab_size": 128, "padded_vocab_size": 128, "init_method_std": 0.3, **changes}
    model = GPT2Model(small_model(**settings, output_layer_init_method="normal"), seed=5).eval()
    with torch.no_grad():
        model.get_parameter("6.final_linear.weight")[:2] = 0.0  # the likeliest logit is above 0
    return model


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


def tokens_of(model: GPT2Model, prompt: list[int], maximum_tokens: int = 5) -> tuple[int, ...]:
    (result,) = generate_batch(
        model, [prompt], decode=lambda tokens: "", maximum_tokens=maximum_tokens
    )
    return result.tokens


# records


def test_each_prompt_gets_a_record_in_order(model):
    first, second = records(model, "one", "two")
    assert (first["context"], second["context"]) == ("one", "two")
    assert list(first) == [
        "context",
        "text",
        "length",
        "finished",
        "message",
        "duration_seconds",
        "finish_reason",
        "stopped_by",
        "prompt_tokens",
    ]
    assert first["length"] == second["length"] == 5
    assert (first["finished"], first["finish_reason"]) == (False, "maximum_tokens")
    assert (first["message"], first["stopped_by"], first["prompt_tokens"]) == (None, None, 3)
    assert first["duration_seconds"] > 0


def test_the_text_is_what_the_tokens_say(model):
    tokenizer: AbstractTokenizer = build_tokenizer(config_with())
    (record,) = records(model, "one")
    assert record["text"] == tokenizer.detokenize(tokens_of(model, tokenizer.tokenize("one")))


def test_the_end_of_document_finishes_a_text(model):
    config = config_with()
    tokenizer = build_tokenizer(config)
    tokens = tokens_of(model, tokenizer.tokenize("one"))
    place = next(n for n in range(1, 5) if tokens[n] not in tokens[:n])
    tokenizer.eod = tokens[place]
    (record,) = generate_samples_from_prompt(config, model, tokenizer, ["one"])
    assert record["finished"]
    assert (record["finish_reason"], record["stopped_by"]) == ("stop_token", tokens[place])
    assert record["length"] == place


def test_a_text_that_ends_at_once_is_null(model):
    config = config_with()
    tokenizer = build_tokenizer(config)
    tokenizer.eod = tokens_of(model, tokenizer.tokenize("one"))[0]
    (record,) = generate_samples_from_prompt(config, model, tokenizer, ["one"])
    assert (record["text"], record["length"], record["finished"]) == (None, 0, True)


def test_stop_tokens_of_the_configuration_end_a_text_too(model):
    tokens = tokens_of(model, list(b"one"))
    place = next(n for n in range(1, 5) if tokens[n] not in tokens[:n])
    (record,) = records(model, "one", stop_tokens=[tokens[place]])
    assert (record["length"], record["stopped_by"]) == (place, tokens[place])


def test_a_stop_token_that_is_none_is_refused_before_a_file_is_begun(model, tmp_path):
    config = config_with(stop_tokens=[5, 512], sample_output_file=str(tmp_path / "out"))
    with pytest.raises(ConfigError, match=r"^stop_tokens: 512 .* the tokenizer has 512"):
        generate_samples(config, model, build_tokenizer(config))
    assert list(tmp_path.iterdir()) == []


def test_a_stop_string_ends_a_text_and_one_that_never_comes_is_told(model):
    (free,) = records(model, "one", maximum_tokens=10)
    stop = free["text"][3:5]
    (record,) = records(model, "one", maximum_tokens=10, stop_strings=[stop])
    assert record["text"] == free["text"][: free["text"].find(stop)]
    assert (record["finished"], record["stopped_by"]) == (True, stop)
    assert record["message"] is None
    (record,) = records(model, "one", maximum_tokens=10, stop_strings=["never"])
    assert (record["text"], record["finished"]) == (free["text"], False)
    assert record["message"] == "no stop string was reached in 10 tokens"


def test_a_prompt_longer_than_the_context_loses_its_beginning(model):
    text = "abcdefghij" * 4
    (record,) = records(model, text)
    (last,) = records(model, text[-19:])
    assert record["context"] == text
    assert (record["text"], record["length"]) == (last["text"], 5)
    assert record["prompt_tokens"] == 19
    assert re.findall(r"\d+", record["message"]) == ["40", "24", "21"]


def test_a_prompt_that_leaves_little_room_stays_whole_and_says_so(model):
    (record,) = records(model, "x" * (LONGEST - 2))
    assert (record["length"], record["finish_reason"]) == (2, "context")
    assert re.findall(r"\d+", record["message"]) == ["22", "24", "2", "5"]


@pytest.mark.parametrize(
    ("length", "maximum_tokens", "kept"),
    [(19, 5, 19), (20, 5, 20), (23, 5, 23), (24, 5, 19), (99, 5, 19), (99, 1, 23), (99, 500, 12)],
)
def test_half_of_the_context_is_kept_at_least(length, maximum_tokens, kept):
    tokens = list(range(length))
    fitted = fit_prompt(tokens, longest=24, maximum_tokens=maximum_tokens)
    assert fitted.tokens == tokens[-kept:]
    assert (fitted.message is None) == (length + maximum_tokens <= 24)


def test_an_empty_prompt_starts_from_the_end_of_document(model):
    tokenizer = build_tokenizer(config_with())
    (record,) = records(model, "")
    assert record["text"] == tokenizer.detokenize(tokens_of(model, [tokenizer.eod]))


def test_logits_are_in_the_record_where_asked_for(model):
    (record,) = records(model, "one", return_logits=True)
    assert [len(row) for row in record["logits"]] == [128] * 5


def texts(model: GPT2Model, *prompts: str, **changes: Any) -> list[str]:
    return [record["text"] for record in records(model, *prompts, **changes)]


def test_recompute_and_batch_size_change_nothing(model):
    prompts = ["one", "t", "three is longer", "", "five"]
    for options in ({}, {"temperature": 1.0, "top_p": 0.9}):
        want = texts(model, *prompts, **options)
        assert texts(model, *prompts, recompute=True, **options) == want
        for size in (1, 2, 100):
            assert texts(model, *prompts, generation_batch_size=size, **options) == want


def test_temperature_0_is_the_likeliest_token_whatever_the_filters_say(model):
    assert texts(model, "one", top_k=50, top_p=0.9, min_p=0.1) == texts(model, "one")


# files


def test_prompts_stand_between_the_ends_and_empty_ones_are_dropped(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("first\n\n  second \nthird")
    assert read_prompts(file, "\n") == ["first", "second", "third"]
    file.write_text("first\nline END second END")
    assert read_prompts(file, "END") == ["first\nline", "second"]


def test_files_of_other_systems_are_read(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"\xef\xbb\xbffirst\r\nsecond\r\n")
    assert read_prompts(file, "\n") == ["first", "second"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "sample_input_file: .*prompts.txt: No such file"),
        (b"", "sample_input_file: .* contains no prompt"),
        (b" \n\n", "sample_input_file: .* contains no prompt"),
        (b"good\n\xff", "sample_input_file: .* not UTF-8 at byte 5"),
    ],
)
def test_a_file_without_usable_prompts_is_refused_before_anything_starts(
    tmp_path, content, message
):
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        check_generation_files(config_with(sample_input_file=str(file)))


def generate_to(path: Path, model: GPT2Model, **changes: Any) -> list[dict[str, Any]]:
    config = config_with(sample_output_file=str(path), **changes)
    said = generate_samples(config, model, build_tokenizer(config))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert said == f"{len(lines)} samples in {path}"
    return lines


def test_a_file_of_prompts_becomes_a_file_of_records(tmp_path, model):
    (tmp_path / "prompts.txt").write_text("one\ntwo")
    output = tmp_path / "out.jsonl"
    output.write_text("an older run\n")
    lines = generate_to(output, model, sample_input_file=str(tmp_path / "prompts.txt"))
    assert [line["context"] for line in lines] == ["one", "two"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "prompts.txt"]


def test_unconditional_samples_differ_and_a_seed_repeats_them(tmp_path, model):
    options = {"num_samples": 3, "temperature": 50.0}
    first = [line["text"] for line in generate_to(tmp_path / "a", model, **options)]
    assert len(set(first)) == 3
    assert [line["text"] for line in generate_to(tmp_path / "b", model, **options)] == first
    more = generate_to(tmp_path / "c", model, **{**options, "num_samples": 5})
    assert [line["text"] for line in more][:3] == first
    other = [line["text"] for line in generate_to(tmp_path / "d", model, seed=9, **options)]
    assert set(other).isdisjoint(first)


def test_without_a_file_the_records_are_printed(model, capsys):
    config = config_with(sample_output_file=None, num_samples=2)
    assert generate_samples(config, model, build_tokenizer(config)) == "2 samples"
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["context"] for line in lines] == ["", ""]


def test_a_run_that_fails_keeps_its_lines_apart_and_the_older_samples(tmp_path, monkeypatch):
    output = tmp_path / "out"
    output.write_text("an older run\n")
    (tmp_path / "prompts").write_text("one\ntwo\nthree")
    calls = iter(range(10))

    def fail_at_the_third(self, texts):
        if next(calls) == 2:
            raise RuntimeError("in the middle")
        return [list(text.encode()) for text in texts]

    monkeypatch.setattr(AbstractTokenizer, "tokenize_prompts", fail_at_the_third)
    options = {"sample_input_file": str(tmp_path / "prompts"), "generation_batch_size": 1}
    with pytest.raises(RuntimeError, match="in the middle"):
        generate_to(output, build(), **options)
    assert output.read_text() == "an older run\n"
    lines = (tmp_path / "out.part").read_text().splitlines()
    assert [json.loads(line)["context"] for line in lines] == ["one", "two"]


def test_a_line_is_in_the_file_before_the_next_sample_is_made(tmp_path, model, monkeypatch):
    (tmp_path / "prompts").write_text("one\ntwo\nthree")
    part, seen = tmp_path / "out.part", []
    tokenize = AbstractTokenizer.tokenize_prompts

    def look(self, texts):
        seen.append(len(part.read_text().splitlines()))
        return tokenize(self, texts)

    monkeypatch.setattr(AbstractTokenizer, "tokenize_prompts", look)
    options = {"sample_input_file": str(tmp_path / "prompts"), "generation_batch_size": 1}
    generate_to(tmp_path / "out", model, **options)
    assert seen == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("file/out", "sample_output_file: there is no folder .*file; make it"),
        ("missing/out", "sample_output_file: there is no folder .*missing; make it"),
        ("folder", "sample_output_file: .*folder is a folder; name a file"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_anything_starts(
    tmp_path, name, message
):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=message):
        check_generation_files(config_with(sample_output_file=str(tmp_path / name)))


@pytest.mark.parametrize(("prompts", "name"), [("p", "p"), ("p", "link"), ("p.part", "p")])
def test_an_output_that_would_replace_the_prompts_is_refused(tmp_path, prompts, name):
    (tmp_path / prompts).write_text("Once upon a time")
    (tmp_path / "link").symlink_to(tmp_path / prompts)
    with pytest.raises(ConfigError, match="would replace the prompts"):
        check_generation_files(
            config_with(
                text_gen_type="input-file",
                sample_input_file=str(tmp_path / prompts),
                sample_output_file=str(tmp_path / name),
            )
        )
    assert (tmp_path / prompts).read_text() == "Once upon a time"


# notes


def test_settings_without_effect_are_told(tmp_path):
    assert generation_notes(config_with()) == []
    notes = generation_notes(config_with(top_k=5, min_p=0.1))
    assert len(notes) == 1
    assert notes[0].startswith("temperature 0 ")
    assert "top_k 5, min_p 0.1" in notes[0]
    ignored = config_with(text_gen_type="unconditional", sample_input_file="a.txt")
    assert generation_notes(ignored) == [
        "text_gen_type is unconditional: the prompts in a.txt are not read"
    ]
    (tmp_path / "out.part").write_text("")
    (note,) = generation_notes(config_with(sample_output_file=str(tmp_path / "out")))
    assert note.startswith(str(tmp_path / "out.part"))
    assert note.endswith(" is replaced")
