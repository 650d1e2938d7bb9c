"""Greedy text is token for token that of transformers, by every way through our program."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from megatron.generation.batch import generate_batch
from tests.interop.conversions import VOCAB_SIZE, export, model_fields, write_run, write_tokenizer
from tools.hf.network import filled_model

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

ROOT = Path(__file__).resolve().parents[2]
LONGEST, NEW_TOKENS = 256, 40
SIZES = {"max_position_embeddings": LONGEST, "seq_length": LONGEST, "rotary_pct": 0.5}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_tokenizer(folder / "tokenizer.json")
    return write_run(folder, model_fields(folder / "tokenizer.json", **SIZES))


@pytest.fixture(scope="module")
def theirs(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "hf"
    export(run, folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).float().eval()
    model.generation_config.eos_token_id = None
    return model


def prompts() -> list[list[int]]:
    """Twenty, of 30 to 125 tokens."""
    generator = torch.Generator().manual_seed(2)
    return [
        torch.randint(2, VOCAB_SIZE, (30 + 5 * number,), generator=generator).tolist()
        for number in range(20)
    ]


def their_tokens(theirs, prompt: list[int]) -> tuple[int, ...]:
    tokens = torch.tensor([prompt])
    result = theirs.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        pad_token_id=1,
    )
    return tuple(result[0, len(prompt) :].tolist())


def test_greedy_tokens_are_those_of_transformers(run, theirs):
    from megatron.checkpoint.format import CheckpointReader
    from tools.hf.settings import settings_of

    reader = CheckpointReader(run)
    ours = filled_model(settings_of(run).shape(VOCAB_SIZE), reader.read_logical)
    wanted = [their_tokens(theirs, prompt) for prompt in prompts()]
    assert sum(len(set(tokens)) for tokens in wanted) > 60  # not one token for ever
    together = generate_batch(ours, prompts(), decode=lambda tokens: "", maximum_tokens=NEW_TOKENS)
    assert [result.tokens for result in together] == wanted
    for prompt, want in zip(prompts()[:5], wanted, strict=False):
        (alone,) = generate_batch(
            ours, [prompt], decode=lambda tokens: "", maximum_tokens=NEW_TOKENS
        )
        assert alone.tokens == want


def generate(
    folder: Path, run: Path, *arguments: str, **changes: Any
) -> subprocess.CompletedProcess[str]:
    """``./deepy.py generate.py -d folder model.yml text_generation.yml ...`` in ``folder``."""
    fields = {
        **model_fields(run.parent / "tokenizer.json", **SIZES),
        "train_micro_batch_size_per_gpu": 1,
        "train_iters": 1,
        "load": str(run.parent),
        **changes,
    }
    (folder / "model.yml").write_text(yaml.safe_dump(fields))
    settings = (ROOT / "configs/text_generation.yml").read_text()
    (folder / "text_generation.yml").write_text(settings)
    script = str(ROOT / "generate.py")
    command = [str(ROOT / "deepy.py"), script, "-d", str(folder), "model.yml"]
    return subprocess.run(
        [sys.executable, *command, "text_generation.yml", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_command_of_the_readme_writes_a_record_a_prompt(run, tmp_path):
    (tmp_path / "prompts.txt").write_text("the weights of\nthe domains")
    result = generate(tmp_path, run, "-i", "prompts.txt", "-o", "out.txt")
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in (tmp_path / "out.txt").read_text().splitlines()]
    assert [line["context"] for line in lines] == ["the weights of", "the domains"]
    assert all(line["length"] > 0 for line in lines)
    assert "2 samples in out.txt" in result.stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "sample_input_file: prompts.txt contains no prompt; write one per line"),
        (b"good\n\xff", "sample_input_file: prompts.txt: not UTF-8 at byte 5; save it as UTF-8"),
    ],
)
def test_bad_prompts_are_one_line_and_code_2(content, message, run, tmp_path):
    (tmp_path / "prompts.txt").write_bytes(content)
    result = generate(tmp_path, run, "-i", "prompts.txt", "-o", "out.txt")
    assert result.returncode == 2
    assert result.stderr.splitlines() == [f"error: {message}"]
    assert not list(tmp_path.glob("out.txt*"))


def write_larger_tokenizer(source: Path, path: Path) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(source))
    tokenizer.add_tokens(["another", "and another"])
    tokenizer.save(str(path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"load": "nowhere"}, "^[^ ]*model.yml:[0-9]+: load: no checkpoint in nowhere"),
        ({"hidden_size": 64}, "^error: .*(hidden_size|32)"),
        (
            {"vocab_file": "larger.json"},
            "^error: .*the model has 300 tokens, the tokenizer .* has 302",
        ),
    ],
)
def test_another_model_is_one_line_and_code_2(changes, message, run, tmp_path):
    (tmp_path / "prompts.txt").write_text("the weights of")
    write_larger_tokenizer(run.parent / "tokenizer.json", tmp_path / "larger.json")
    result = generate(tmp_path, run, "-i", "prompts.txt", "-o", "out.txt", **changes)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert re.search(message, line)
    assert not list(tmp_path.glob("out.txt*"))
