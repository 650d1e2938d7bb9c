import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron.tokenizer import DocumentError, TokenizerError, train_tokenizer
from megatron.tokenizer.tokenizer import HFTokenizer

ROOT = Path(__file__).resolve().parents[3]
TEXTS = ["low lower lowest", "new newer newest", "the lowest of the new \ufb01"]


@pytest.fixture
def folder(tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    lines = [json.dumps({"text": text}) for text in TEXTS[:2]]
    (corpus / "a.jsonl").write_text("\n".join(lines))
    (corpus / "b.txt").write_text(TEXTS[2], encoding="utf-8")
    return corpus


def train(folder, output, *more):
    arguments = ["--json_input_dir", str(folder), "--tokenizer_output_path", str(output), *more]
    return train_tokenizer.main(train_tokenizer.parse_args(arguments))


def test_the_special_tokens_come_first_and_every_byte_is_known(folder, tmp_path):
    train(folder, tmp_path / "tokenizer.json", "-v", "270")
    tokenizer = HFTokenizer(str(tmp_path / "tokenizer.json"))
    assert (tokenizer.eod, tokenizer.pad, tokenizer.vocab_size) == (0, 1, 270)
    text = "unseen \u4e16\u754c \U0001f600 \t\r\n"
    assert tokenizer.detokenize(tokenizer.tokenize(text)) == text


def test_frequent_words_become_short(folder, tmp_path):
    train(folder, tmp_path / "tokenizer.json", "--vocab_size", "300")
    tokenizer = HFTokenizer(str(tmp_path / "tokenizer.json"))
    assert len(tokenizer.tokenize("lowest")) < len("lowest")


def test_text_is_normalised_to_nfkc(folder):
    tokenizer = train(folder, "", "-v", "270")
    ids = tokenizer.encode("\ufb01").ids
    assert tokenizer.decode(ids) == "fi"


def test_training_twice_gives_the_same_bytes(folder, tmp_path):
    for name in ("one.json", "two.json"):
        train(folder, tmp_path / name, "-v", "290")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_hidden_files_are_left_out_and_counted(folder, tmp_path, capsys):
    train(folder, tmp_path / "one.json", "-v", "290")
    for name in (".x/c.jsonl", "__MACOSX/._d.txt", ".e.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"\xff")
    capsys.readouterr()
    train(folder, tmp_path / "two.json", "-v", "290")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("left out hidden files")
    assert ": 3; the first" in line


def test_an_empty_output_path_writes_nothing(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert train(folder / "b.txt", "", "-v", "260").get_vocab_size() == 260
    assert sorted(tmp_path.rglob("*")) == before


def test_a_vocabulary_smaller_than_the_bytes_is_refused(folder, tmp_path):
    with pytest.raises(TokenizerError, match="at least 258"):
        train(folder, tmp_path / "tokenizer.json", "-v", "257")
    assert not (tmp_path / "tokenizer.json").exists()


def test_nothing_to_train_on_is_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text('\n{"text": ""}\n')
    with pytest.raises(DocumentError, match="contains no text to train on"):
        train(tmp_path / "empty.jsonl", tmp_path / "tokenizer.json")
    assert not (tmp_path / "tokenizer.json").exists()


def test_the_script_names_the_malformed_line_and_leaves_nothing(folder, tmp_path):
    (folder / "c.jsonl").write_text('{"text": "good"}\n{"text": \n')
    script = ROOT / "megatron/tokenizer/train_tokenizer.py"
    output = tmp_path / "out" / "tokenizer.json"
    arguments = ["--json_input_dir", folder, "--tokenizer_output_path", output]
    run = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True)
    assert run.returncode == 2
    assert "c.jsonl:2: malformed JSON" in run.stderr
    assert "Traceback" not in run.stderr
    assert not output.parent.exists()


@pytest.mark.parametrize("given", [".", "texts.jsonl", "link.jsonl"])
def test_a_tokenizer_does_not_replace_the_text_it_is_trained_on(tmp_path, given):
    text = tmp_path / "texts.jsonl"
    text.write_text(json.dumps({"text": "The quick brown fox. " * 20}) + "\n")
    (tmp_path / "link.jsonl").symlink_to(text)
    before = text.read_text()
    with pytest.raises(DocumentError, match=r"--tokenizer_output_path: .* is part of the text"):
        train(tmp_path / given, text)
    assert text.read_text() == before
