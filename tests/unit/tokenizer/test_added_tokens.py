"""Tokens that a tokenizer.json adds to each text: left out, told, or added everywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from megatron.eval_tasks.encoding import encode_pairs
from megatron.tokenizer import AbstractTokenizer, TokenizerError, build_tokenizer
from tools.datasets.encoding import Encoder, EncoderSettings
from tools.hf.tokenizer_files import token_ids, write_tokenizer

EOD, BOS, EOS, A, B = range(5)
VOCAB = {"<|endoftext|>": EOD, "<s>": BOS, "</s>": EOS, "a": A, "b": B}


def template(single: str) -> processors.TemplateProcessing:
    names = [name for name in VOCAB if name in single]
    return processors.TemplateProcessing(
        single=single, special_tokens=[(name, VOCAB[name]) for name in names]
    )


ROBERTA = processors.RobertaProcessing(("</s>", EOS), ("<s>", BOS))
BERT = processors.BertProcessing(("</s>", EOS), ("<s>", BOS))
BYTES = processors.ByteLevel(trim_offsets=False)

ADDING: dict[str, tuple[Any, tuple[int, ...], tuple[int, ...]]] = {
    "begin": (template("<s> $A"), (BOS,), ()),
    "end": (template("$A </s>"), (), (EOS,)),
    "both": (template("<s> $A <|endoftext|>"), (BOS,), (EOD,)),
    "two before": (template("<s> <s> $A"), (BOS, BOS), ()),
    "bert": (BERT, (BOS,), (EOS,)),
    "roberta": (ROBERTA, (BOS,), (EOS,)),
    "in a sequence": (processors.Sequence([BYTES, template("<s> $A")]), (BOS,), ()),
    "roberta in a sequence": (processors.Sequence([ROBERTA, BYTES]), (BOS,), (EOS,)),
}
NOT_ADDING: dict[str, Any] = {
    "nothing": None,
    "bytes": BYTES,
    "template": template("$A"),
    "sequence": processors.Sequence([BYTES, template("$A")]),
}


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., AbstractTokenizer]:
    """Makes a tokenizer with a post-processor."""

    def make(post_processor: Any, *, adds: bool | None = None) -> AbstractTokenizer:
        tokenizer = Tokenizer(models.WordLevel(VOCAB, unk_token="<|endoftext|>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.add_special_tokens(["<|endoftext|>", "<s>", "</s>"])
        if post_processor is not None:
            tokenizer.post_processor = post_processor
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        return build_tokenizer(settings_of(tmp_path, adds))

    return make


def settings_of(folder: Path, adds: bool | None) -> SimpleNamespace:
    return SimpleNamespace(
        tokenizer_type="HFTokenizer",
        vocab_file=str(folder / "tokenizer.json"),
        merge_file=None,
        tokenizer_adds_special_tokens=adds,
    )


def exported(tokenizer: AbstractTokenizer, source: Path, folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"model_type": "gpt_neox", **token_ids(tokenizer)})
    )
    write_tokenizer(tokenizer, folder, vocab_file=str(source / "tokenizer.json"), max_length=64)
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(("post_processor", "before", "after"), ADDING.values(), ids=ADDING)
class TestTokensThatAreAdded:
    def test_they_are_known_and_not_part_of_a_text_unless_asked_for(
        self, build, post_processor, before, after
    ):
        plain = build(post_processor)
        assert (plain.own_added.before, plain.own_added.after) == (before, after)
        assert plain.tokenize_batch(["a b", ""]) == [[A, B], []]
        assert plain.tokenize_prompts(["a b", ""]) == [[A, B], []]
        adding = build(post_processor, adds=True)
        assert adding.tokenize_batch(["a b", ""]) == [[*before, A, B, *after], []]
        assert adding.tokenize_prompts(["a b", ""]) == [[*before, A, B], [*before]]
        assert adding.fingerprint != plain.fingerprint

    @pytest.mark.parametrize("adds", [False, True])
    def test_an_export_gives_the_tokens_of_training(
        self, build, tmp_path, post_processor, before, after, adds
    ):
        tokenizer = build(post_processor, adds=adds)
        theirs = exported(tokenizer, tmp_path, tmp_path / "exported")
        for text in ("a", "b a b"):
            assert theirs(text)["input_ids"] == tokenizer.tokenize(text)
            assert theirs.encode(text) == tokenizer.tokenize(text)
        settings = json.loads((tmp_path / "exported" / "tokenizer_config.json").read_text())
        wanted = {"add_bos_token": adds and before != (), "add_eos_token": adds and after != ()}
        assert {name: settings[name] for name in wanted} == wanted
        copied = (tmp_path / "exported" / "tokenizer.json").read_bytes()
        assert (copied == (tmp_path / "tokenizer.json").read_bytes()) == adds


@pytest.mark.parametrize("post_processor", NOT_ADDING.values(), ids=NOT_ADDING)
def test_where_nothing_is_added_the_file_is_copied_and_the_switch_refused(
    build, tmp_path, post_processor
):
    tokenizer = build(post_processor)
    assert not tokenizer.own_added
    assert tokenizer.describe_own_added() == ""
    assert exported(tokenizer, tmp_path, tmp_path / "out")("a b")["input_ids"] == [A, B]
    copied = (tmp_path / "out" / "tokenizer.json").read_bytes()
    assert copied == (tmp_path / "tokenizer.json").read_bytes()
    with pytest.raises(TokenizerError, match=r"^tokenizer_adds_special_tokens: .* HFTokenizer"):
        build(post_processor, adds=True)


def test_what_does_not_add_stays_in_an_exported_post_processor(build, tmp_path):
    tokenizer = build(processors.Sequence([BYTES, template("<s> $A")]))
    exported(tokenizer, tmp_path, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    kinds = [part["type"] for part in content["post_processor"]["processors"]]
    assert kinds == ["ByteLevel"]


def test_what_is_added_is_told_by_name(build):
    assert build(ADDING["both"][0]).describe_own_added() == "'<s>' before and '<|endoftext|>' after"


def test_a_vocabulary_without_letters_is_no_obstacle(tmp_path):
    vocab = {"<|endoftext|>": 0, "word": 1}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<|endoftext|>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    added = build_tokenizer(settings_of(tmp_path, None)).own_added
    assert (added.before, added.after) == ((0,), (0,))


def test_a_tokenizer_of_another_kind_adds_nothing():
    settings = SimpleNamespace(
        tokenizer_type="CharLevelTokenizer", vocab_file=None, tokenizer_adds_special_tokens=True
    )
    with pytest.raises(TokenizerError, match=r"^tokenizer_adds_special_tokens: .* CharLevel"):
        build_tokenizer(settings)


def test_a_prompt_that_begins_as_a_text_does_is_left_as_it_is(build):
    tokenizer = build(template("<s> $A </s>"), adds=True)
    assert tokenizer.tokenize_prompts(["<s> a", "a"]) == [[BOS, A], [BOS, A]]


def test_contexts_of_tasks_begin_as_texts_do_and_endings_do_not(build):
    texts = [("a", " b"), ("", "b a")]
    adding = build(template("<s> $A </s>"), adds=True)
    assert encode_pairs(texts, adding, prefix=BOS) == [([BOS, A], [B]), ([BOS], [B, A])]
    plain = build(template("<s> $A </s>"))
    assert encode_pairs(texts, plain, prefix=EOD) == [([A], [B]), ([EOD], [B, A])]


@pytest.mark.parametrize(
    ("single", "document"),
    [("<s> $A", [BOS, A, EOD]), ("$A </s>", [A, EOS, EOD]), ("$A <|endoftext|>", [A, EOD])],
)
def test_documents_end_once_with_the_end_of_a_document(build, tmp_path, single, document):
    build(template(single))
    settings = EncoderSettings(
        "HFTokenizer",
        str(tmp_path / "tokenizer.json"),
        append_eod=True,
        tokenizer_adds_special_tokens=True,
    )
    (texts,) = Encoder(settings).encode([("a",), ("",)])
    assert texts.tokens.tolist() == document
    assert texts.num_empty == 1
