"""docs/continued_pretraining.md as it is written, on a tiny Llama and a tiny Qwen."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron.checkpoint.format import CheckpointReader
from megatron.launcher.command import main as deepy
from megatron.reporting.run_log import read_run_log
from tools.benchmark.interop.checks import our_logits, some_tokens, their_logits
from tools.benchmark.interop.networks import VOCAB_SIZE, write_tokenizer
from tools.convert_from_hf import main as convert_from_hf
from tools.convert_to_hf import main as convert_to_hf
from tools.datasets.prepare import main as prepare_data

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
pytestmark = pytest.mark.distributed

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/continued_pretraining.md").read_text(encoding="utf-8")
SMALLER = {
    "train_iters: 1000": "train_iters: 3",
    "train_batch_size: 32": "train_batch_size: 4",
    "data_sampling_warmup_steps: 50": "data_sampling_warmup_steps: 0",
    "lr: 2.0e-5": "lr: 2.0e-3",
    "eval_interval: 500": "eval_interval: 500\nlog_interval: 1",
}
"""What is replaced in the YAML file: sizes, and the interval of the log."""

SIZES = {
    **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048},
    "initializer_range": 0.3,
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def write_base(folder: Path, kind: str) -> None:
    """A model as the Hub has it; documents of Llama end with ``</s>``."""
    torch.manual_seed(1)
    if kind == "llama":
        config = transformers.LlamaConfig(vocab_size=VOCAB_SIZE + 20, **SIZES)
    else:
        config = transformers.Qwen3Config(
            vocab_size=VOCAB_SIZE + 20, head_dim=8, tie_word_embeddings=True, **SIZES
        )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    write_tokenizer(folder / "tokenizer.json")
    if kind == "llama":
        text = (folder / "tokenizer.json").read_text().replace("<|endoftext|>", "</s>")
        (folder / "tokenizer.json").write_text(text.replace("<|padding|>", "<s>"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def run(command: str, place: Path) -> None:
    words = shlex.split(command)
    if words[:2] == ["hf", "download"]:
        assert (place / words[words.index("--local-dir") + 1]).is_dir()
    elif words[:2] == ["python", "tools/convert_from_hf.py"]:
        convert_from_hf(words[2:])
    elif words[:2] == ["python", "prepare_data.py"]:
        prepare_data(words[2:])
    elif words[0] == "./deepy.py":
        assert deepy(words[1:]) == 0
    else:
        assert words[:2] == ["python", "tools/convert_to_hf.py"]
        convert_to_hf(words[2:])


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_model_is_imported_trained_on_two_domains_exported_and_compared(
    kind, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("WORLD_SIZE", "DLTS_HOSTFILE", "DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    write_base(tmp_path / "base", kind)
    for domain, word in (("letters", "abc de "), ("digits", "0123 45 ")):
        (tmp_path / "my_texts" / domain).mkdir(parents=True)
        for number in range(30):
            text = f"{number} " + word * 150
            (tmp_path / "my_texts" / domain / f"{number}.txt").write_text(text)
    (yaml_text,) = blocks("yaml")
    for old, new in SMALLER.items():
        assert yaml_text.count(old) == 1, old
        yaml_text = yaml_text.replace(old, new)
    (tmp_path / "my_training.yml").write_text(yaml_text)

    commands = [line for block in blocks("bash") for line in block.splitlines()]
    assert len(commands) == 5
    for command in commands:
        run(command, tmp_path)
    assert "verified with transformers" in capfd.readouterr().out

    events = [e for e in read_run_log(Path("checkpoints/continued")) if e["event"] == "train"]
    assert [event["iteration"] for event in events] == [1, 2, 3]
    assert set(events[0]["weights"]) == {"letters", "digits"}
    source = tmp_path / "checkpoints/continued/global_step3"
    config = json.loads((tmp_path / "exported/continued/config.json").read_text())
    assert config["model_type"] == kind
    tokens = some_tokens(source)[:, :64]
    theirs = their_logits(tmp_path / "exported/continued", tokens)
    torch.testing.assert_close(theirs, our_logits(source, tokens), rtol=0, atol=1e-4)
    before = their_logits(tmp_path / "base", tokens)[..., :VOCAB_SIZE]
    assert (theirs - before).abs().max() > 1e-2  # it was trained
    assert CheckpointReader(source.with_name("global_step0")).parameters

    (program,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    printed = re.findall(r"^(\S+): (\d+\.\d+) nats per token$", done.stdout, re.MULTILINE)
    assert [folder for folder, _ in printed] == ["base", "exported/continued"]
