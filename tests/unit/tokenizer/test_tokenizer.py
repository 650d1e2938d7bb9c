import base64
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.tokenizer import TokenizerError, build_tokenizer, padded_vocab_size
from megatron.tokenizer.tokenizer import CharLevelTokenizer

ROOT = Path(__file__).resolve().parents[3]
LETTERS_WITHOUT_EOD_AND_PAD = st.text(st.characters(exclude_characters="\0\1", codec="utf-8"))


def build(tokenizer_type, vocab_file=None, merge_file=None):
    return build_tokenizer(
        SimpleNamespace(
            tokenizer_type=tokenizer_type,
            vocab_file=None if vocab_file is None else str(vocab_file),
            merge_file=None if merge_file is None else str(merge_file),
        )
    )


@pytest.fixture
def gpt2_files(tmp_path):
    # The space is written as U+0120 in byte-level vocabularies.
    tokens = ["l", "o", "w", "e", "r", "lo", "low", "\u0120", "\u0120low", "er", "<|endoftext|>"]
    tokens += ["<", "|", "n", "d", "f", "t", "x", ">"]
    vocab, merges = tmp_path / "vocab.json", tmp_path / "merges.txt"
    vocab.write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    merges.write_text("#version: 0.2\nl o\nlo w\n\u0120 low\ne r\n", encoding="utf-8")
    return vocab, merges


def test_character_level_ids_are_the_utf8_bytes():
    tokenizer = CharLevelTokenizer()
    assert tokenizer.tokenize("A\u00e9") == [65, 0xC3, 0xA9]
    assert (tokenizer.vocab_size, tokenizer.eod, tokenizer.pad) == (512, 0, 1)
    assert tokenizer.detokenize([0, 72, 105, 1, 0]) == "Hi"
    assert tokenizer.detokenize([72, 300, 105]) == "H\ufffdi"


@given(text=LETTERS_WITHOUT_EOD_AND_PAD)
def test_character_level_gives_back_any_text(text):
    tokenizer = CharLevelTokenizer()
    assert tokenizer.detokenize(tokenizer.tokenize(text)) == text


def test_gpt2_bpe_merges_as_worked_out_by_hand(gpt2_files):
    tokenizer = build("GPT2BPETokenizer", *gpt2_files)
    assert tokenizer.tokenize("low lower") == [6, 8, 9]
    assert tokenizer.tokenize_batch(["low", "er"]) == [[6], [9]]
    assert tokenizer.detokenize([6, 8, 9]) == "low lower"
    assert (tokenizer.vocab_size, tokenizer.eod, tokenizer.pad) == (19, 10, 10)


def test_a_document_cannot_end_itself_in_gpt2_bpe(gpt2_files):
    tokenizer = build("GPT2BPETokenizer", *gpt2_files)
    ids = tokenizer.tokenize("<|endoftext|>")
    assert tokenizer.eod not in ids
    assert tokenizer.detokenize(ids) == "<|endoftext|>"


def test_the_fingerprint_is_the_digest_of_the_files(gpt2_files):
    content = gpt2_files[0].read_bytes() + gpt2_files[1].read_bytes()
    expected = hashlib.sha256(content).hexdigest()
    assert build("GPT2BPETokenizer", *gpt2_files).fingerprint == expected


def test_a_vocabulary_without_end_of_document_is_refused(gpt2_files):
    vocab = json.loads(gpt2_files[0].read_text())
    vocab["other"] = vocab.pop("<|endoftext|>")
    gpt2_files[0].write_text(json.dumps(vocab))
    with pytest.raises(TokenizerError, match=r"vocab\.json: the vocabulary has no token"):
        build("GPT2BPETokenizer", *gpt2_files)


def test_a_folder_of_gpt2_files_gains_padding_behind_its_tokens(gpt2_files):
    tokenizer = build("HFGPT2Tokenizer", gpt2_files[0].parent)
    assert tokenizer.tokenize("low lower") == [6, 8, 9]
    assert (tokenizer.vocab_size, tokenizer.eod, tokenizer.pad) == (20, 10, 19)
    assert tokenizer.inv_vocab[19] == "<|padding|>"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer_config.json", "{", "contains no settings of a tokenizer"),
        ("tokenizer_config.json", '{"eos_token": {}}', "contains no settings of a tokenizer"),
        ("tokenizer_config.json", '{"eos_token": 5}', "eos_token 5 is not a text"),
        ("tokenizer.json", "{}", "is not a tokenizer.json"),
    ],
)
def test_a_damaged_file_of_a_tokenizer_folder_is_named(gpt2_files, name, content, message):
    (gpt2_files[0].parent / name).write_text(content)
    with pytest.raises(TokenizerError, match=message) as raised:
        build("HFGPT2Tokenizer", gpt2_files[0].parent)
    assert name in str(raised.value)


WORDS = ["cat", "dog", "mat", "river", "sings", "walked", "house", "quickly"]


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "sentences.txt"
    path.write_text("".join(f"the {a} {b} on a {c}\n" for a in WORDS for b in WORDS for c in WORDS))
    return path


def train_sentencepiece(sentences, prefix, **settings):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        input=str(sentences), model_prefix=str(prefix), vocab_size=28, minloglevel=2, **settings
    )
    return f"{prefix}.model"


def test_sentencepiece_ends_documents_with_its_own_piece(sentences, tmp_path):
    model = train_sentencepiece(
        sentences, tmp_path / "own", user_defined_symbols=["<|endoftext|>", "<|padding|>"]
    )
    tokenizer = build("SPMTokenizer", model)
    assert tokenizer.inv_vocab[tokenizer.eod] == "<|endoftext|>"
    assert tokenizer.inv_vocab[tokenizer.pad] == "<|padding|>"
    assert tokenizer.vocab_size == 28
    assert tokenizer.detokenize(tokenizer.tokenize("the dog sat")) == "the dog sat"


def test_sentencepiece_falls_back_to_the_eos_of_the_model(sentences, tmp_path):
    tokenizer = build("SPMTokenizer", train_sentencepiece(sentences, tmp_path / "eos", eos_id=7))
    assert (tokenizer.eod, tokenizer.pad) == (7, 7)


def test_a_sentencepiece_model_without_any_end_is_refused_with_the_cure(sentences, tmp_path):
    model = train_sentencepiece(sentences, tmp_path / "none", eos_id=-1)
    with pytest.raises(TokenizerError, match="user_defined_symbols"):
        build("SPMTokenizer", model)


def test_tiktoken_ranks_of_a_local_file_are_used(tmp_path):
    path = tmp_path / "r50k_base.tiktoken"
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"lo": 256, b"low": 257}
    lines = (f"{base64.b64encode(token).decode()} {rank}" for token, rank in ranks.items())
    path.write_text("\n".join(lines))
    tokenizer = build("TiktokenTokenizer", path)
    assert tokenizer.tokenize("low l") == [257, 32, 108]
    assert tokenizer.detokenize([257, 32, 108]) == "low l"
    assert (tokenizer.eod, tokenizer.vocab_size) == (50256, 50257)
    assert tokenizer.eod not in tokenizer.tokenize("<|endoftext|>")
    assert tokenizer.vocab["low"] == 257
    # 50000 lies in the gap behind the ranks; 0xc3 0xa9 is one letter of two tokens
    assert tokenizer.detokenize([0xC3, 0xA9, 50000, 257]) == "\u00e9\ufffdlow"


@pytest.mark.parametrize(
    ("tokenizer_type", "vocab_file", "message"),
    [
        ("WordTokenizer", None, "choose one of GPT2BPETokenizer"),
        ("HFTokenizer", None, "vocab_file: HFTokenizer needs the path of a tokenizer.json"),
        ("HFTokenizer", "absent.json", "vocab_file: no file absent.json"),
        ("SPMTokenizer", "absent.model", "no file absent.model"),
        ("TiktokenTokenizer", None, "name of an encoding"),
        ("TiktokenTokenizer", "nothing_base", "vocab_file: 'nothing_base' "),
        ("HFTokenizer", __file__, "is not a tokenizer.json"),
        ("SPMTokenizer", __file__, "is not a sentencepiece model"),
        ("HFGPT2Tokenizer", __file__, "use tokenizer_type HFTokenizer"),
    ],
)
def test_a_wrong_choice_gives_one_line(tokenizer_type, vocab_file, message):
    with pytest.raises(TokenizerError) as raised:
        build(tokenizer_type, vocab_file)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    (tmp_path / "some.model").touch()
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(TokenizerError, match="pip install sentencepiece"):
        build("SPMTokenizer", tmp_path / "some.model")


def test_the_type_is_matched_without_regard_to_case_and_in_groups():
    assert build("charleveltokenizer").name == "CharLevelTokenizer"
    grouped = SimpleNamespace(
        data=SimpleNamespace(tokenizer_type="CharLevelTokenizer", vocab_file=None, merge_file=None)
    )
    assert build_tokenizer(grouped).name == "CharLevelTokenizer"


def test_the_20b_vocabulary_is_padded_to_50304():
    assert padded_vocab_size(50277, 128) == 50304
    assert padded_vocab_size(50304, 128) == 50304
    with pytest.raises(TokenizerError, match="must be at least 1"):
        padded_vocab_size(10, 0)


@given(size=st.integers(1, 10**6), divisor=st.integers(1, 1024))
def test_padding_is_the_least_multiple_that_holds_the_vocabulary(size, divisor):
    padded = padded_vocab_size(size, divisor)
    assert padded % divisor == 0
    assert 0 <= padded - size < divisor


def test_importing_the_package_loads_no_library():
    code = (
        "import sys, megatron.tokenizer, megatron.tokenizer.train_tokenizer;"
        "heavy = {'torch', 'deepspeed', 'tokenizers', 'sentencepiece', 'tiktoken', 'transformers'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
