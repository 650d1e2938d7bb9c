"""The size of a vocabulary, read from files: that of the tokenizer which is built from them."""

import base64
import json

import pytest

from megatron.tokenizer import TokenizerError
from megatron.tokenizer.file_size import tokenizer_file_size, tokenizer_size
from megatron.tokenizer.tokenizer import BUILDERS, HFTokenizer

TEXT = ["the weights of the mixture follow the losses of the domains"] * 3
END = "<|endoftext|>"


def bpe(path, *, special=(END, "<|padding|>")):
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(special),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.save(str(path))
    return tokenizer


def unigram(folder):
    tokenizers = pytest.importorskip("tokenizers")
    pieces = [("<unk>", 0.0), ("a", -1.0), ("b", -2.0), (END, -9.0)]
    tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, 0)).save(str(folder / "t.json"))
    return "HFTokenizer", folder / "t.json", None


def with_gaps(folder):
    bpe(folder / "t.json")
    content = json.loads((folder / "t.json").read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "id": 400, "content": "<far>"})
    (folder / "t.json").write_text(json.dumps(content))
    return "HFTokenizer", folder / "t.json", None


def whole_file(folder):
    bpe(folder / "t.json")
    return "hftokenizer", folder / "t.json", None


def gpt2(folder):
    bpe(folder / "t.json").model.save(str(folder))
    return "GPT2BPETokenizer", folder / "vocab.json", folder / "merges.txt"


def transformers_folder(folder):
    bpe(folder / "tokenizer.json", special=("<s>",))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    return "HFGPT2Tokenizer", folder, None


def old_transformers_folder(folder):
    bpe(folder / "t.json", special=()).model.save(str(folder))
    return "HFGPT2Tokenizer", folder, None


def sentencepiece(folder):
    library = pytest.importorskip("sentencepiece")
    (folder / "text.txt").write_text("\n".join(TEXT))
    library.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "m"),
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return "SPMTokenizer", folder / "m.model", None


def tiktoken(folder):
    pytest.importorskip("tiktoken")
    lines = (f"{base64.b64encode(bytes([k])).decode()} {k}\n" for k in range(256))
    (folder / "cl100k_base.tiktoken").write_text("".join(lines))
    return "TiktokenTokenizer", folder / "cl100k_base.tiktoken", None


def characters(folder):
    return "CharLevelTokenizer", None, None


FAMILIES = [
    *(whole_file, with_gaps, unigram, gpt2, transformers_folder, old_transformers_folder),
    *(sentencepiece, tiktoken, characters),
]


@pytest.mark.parametrize("make", FAMILIES, ids=lambda make: make.__name__)
def test_the_size_is_that_of_the_tokenizer_that_is_built(tmp_path, make):
    kind, vocab_file, merge_file = make(tmp_path)
    vocab, merges = vocab_file and str(vocab_file), merge_file and str(merge_file)
    names = {name.lower(): name for name in BUILDERS}
    built = BUILDERS[names[kind.lower()]](vocab, merges)
    assert tokenizer_size(kind, vocab, merges) == built.vocab_size


@pytest.mark.parametrize(
    ("name", "size"), [("gpt2", 50257), ("p50k_base", 50281), ("cl100k_base", 100277)]
)
def test_an_encoding_of_tiktoken_has_its_published_size_without_a_download(name, size):
    pytest.importorskip("tiktoken")
    assert tokenizer_size("TiktokenTokenizer", name) == size


def test_a_vocabulary_with_gaps_is_as_large_as_its_largest_id(tmp_path):
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 7, END: 9}}}))
    assert tokenizer_size("HFTokenizer", str(path)) == 10


def test_pieces_of_a_sentencepiece_model_are_counted_between_fields_of_other_kinds(tmp_path):
    fields = (
        b"\x0a\x03abc",  # field 1: a piece of three bytes
        b"\x10\x96\x01",  # field 2: the number 150
        b"\x19" + bytes(8),  # field 3: eight bytes
        b"\x0a\x80\x01" + b"b" * 128,  # a piece of 128 bytes
        b"\x25" + bytes(4),  # field 4: four bytes
        b"\x12\x01x",  # field 2: text, which is no piece
        b"\x0a\x00",  # an empty piece
    )
    (tmp_path / "m.model").write_bytes(b"".join(fields))
    assert tokenizer_size("SPMTokenizer", str(tmp_path / "m.model")) == 3


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("HFTokenizer", '["not", "a", "tokenizer"]', "is not a tokenizer.json"),
        ("HFTokenizer", '{"model": {}}', "is not a tokenizer.json"),
        ("HFTokenizer", '{"model": {"vocab": {"a": "b"}}}', "its tokens have no numbers"),
        ("HFTokenizer", '{"model"', "is not a tokenizer.json"),
        ("HFTokenizer", '{"model": {"vocab": {"a": 0}}}', f"no token '{END.replace('|', '.')}'"),
        ("HFTokenizer", "[" * 100_000, "is not a tokenizer.json"),
        ("GPT2BPETokenizer", '{"a": 0}', "no token"),
        ("GPT2BPETokenizer", "[1]", "is not a vocabulary"),
        ("SPMTokenizer", '{"a": 0}', "is not a sentencepiece model"),
        ("HFGPT2Tokenizer", "{}", "is a file"),
        ("HFTokenizer", "null", "is not a tokenizer.json"),
        ("HFTokenizer", f'{{"model": {{"vocab": {{"{END}": {2**32}}}}}}}', "have no numbers"),
        (
            "HFTokenizer",
            '{"model": {"vocab": {"a": 0}}, "added_tokens": [{"content": 1}]}',
            "lacks",
        ),
        ("GPT2BPETokenizer", "null", "is not a vocabulary"),
        ("TiktokenTokenizer", "", "encoding of tiktoken; choose one of"),
    ],
)
def test_what_is_no_tokenizer_is_refused(tmp_path, kind, content, message):
    path = tmp_path / "vocab.json"
    path.write_text(content)
    with pytest.raises(TokenizerError, match=message):
        tokenizer_size(kind, str(path), str(path))
    assert tokenizer_file_size(kind, str(path), str(path)) is None


@pytest.mark.parametrize(
    "content",
    ["", "YQ== -1", "YQ== 0\nYg== 0", f"YQ== {2**32 - 1}", f"YQ== {'9' * 20}", "YQ== x", "YQ=="],
)
def test_ranks_that_tiktoken_fails_on_are_refused_by_the_tokenizer_and_before_it(tmp_path, content):
    pytest.importorskip("tiktoken")
    path = tmp_path / "cl100k_base.tiktoken"
    path.write_text(content)
    for read in (tokenizer_size, BUILDERS["TiktokenTokenizer"]):
        arguments = ("TiktokenTokenizer",) if read is tokenizer_size else ()
        with pytest.raises(TokenizerError, match="file of tiktoken ranks"):
            read(*arguments, str(path), None)


@pytest.mark.parametrize("kind", ["HFTokenizer", "GPT2BPETokenizer", "SPMTokenizer"])
@pytest.mark.parametrize("path", [None, "nowhere/vocab.json"])
def test_a_file_that_is_not_there_is_refused(kind, path):
    with pytest.raises(TokenizerError, match=r"^vocab_file: "):
        tokenizer_size(kind, path)


def test_merges_that_are_not_there_are_refused(tmp_path):
    (tmp_path / "v.json").write_text(json.dumps({END: 0}))
    with pytest.raises(TokenizerError, match=r"^merge_file: no file nowhere"):
        tokenizer_size("GPT2BPETokenizer", str(tmp_path / "v.json"), "nowhere")


def test_a_name_on_the_hub_is_not_looked_up():
    assert tokenizer_size("HFGPT2Tokenizer", "somebody/some-model") is None


@pytest.mark.parametrize("eos", ["</s>", {"content": "</s>", "lstrip": False}])
def test_a_vocabulary_without_neox_end_of_document_ends_with_the_eos_beside_it(eos, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {"a": 0, "</s>": 1, "<unk>": 2}
    path = tmp_path / "tokenizer.json"
    model = tokenizers.models.WordLevel(vocabulary, unk_token="<unk>")
    tokenizers.Tokenizer(model).save(str(path))
    for build in (HFTokenizer, lambda file: tokenizer_size("HFTokenizer", file)):
        with pytest.raises(TokenizerError, match=r"no token '<\|endoftext\|>'.*eos_token"):
            build(str(path))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
    tokenizer = HFTokenizer(str(path))
    assert (tokenizer.eod, tokenizer.vocab_size) == (1, 3)
    assert tokenizer_size("HFTokenizer", str(path)) == 3
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "a"}')
    other = HFTokenizer(str(path))
    assert other.eod == 0
    assert other.fingerprint != tokenizer.fingerprint  # documents end elsewhere
