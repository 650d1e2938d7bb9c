"""Commands of the documents and of shipped files, run as they are written up to the start."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from megatron.launcher.command import main as deepy
from tests.interop.conversions import write_their_model
from tools import preprocess_data
from tools.convert_from_hf import main as convert_from_hf
from tools.datasets.prepare import main as prepare_data
from tools.hf.settings import settings_of

ROOT = Path(__file__).resolve().parents[2]
TRAINING = {
    "train_iters": 2,
    "train_micro_batch_size_per_gpu": 1,
    "optimizer": {"type": "Adam", "params": {"lr": 1e-3}},
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder to be in, where the scripts of the repository are."""
    monkeypatch.chdir(tmp_path)
    for name in ("WORLD_SIZE", "DLTS_HOSTFILE", "DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    for name in ("train.py", "generate.py", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def documented_import() -> list[list[str]]:
    """The commands below the heading Import, split into words."""
    text = (ROOT / "docs/huggingface.md").read_text(encoding="utf-8")
    block = re.search(r"## Import\n\n```bash\n(.*?)```", text, flags=re.DOTALL).group(1)
    return [shlex.split(line) for line in block.splitlines()]


def test_the_documented_import_leads_to_a_run_that_can_start(place, tokenizer_file, capsys):
    download, convert, prepare, train = documented_import()
    assert download[:2] == ["hf", "download"]
    write_their_model(place / download[download.index("--local-dir") + 1], tokenizer_file, rows=304)
    assert convert[:2] == ["python", "tools/convert_from_hf.py"]
    convert_from_hf(convert[2:])
    texts = place / prepare[prepare.index("--input") + 1]
    for domain in ("left", "right"):
        (texts / domain).mkdir(parents=True)
        for number in range(20):
            text = f"text {number} of the {domain} domain, on the mixture and its weights"
            (texts / domain / f"{number}.txt").write_text(text)
    assert prepare[0] == "./prepare_data.py"
    prepare_data(prepare[1:])
    (place / "my_training.yml").write_text(yaml.safe_dump(TRAINING))
    assert train[0] == "./deepy.py"
    assert deepy([*train[1:], "--check"]) == 0, capsys.readouterr().err
    assert "left, right" in capsys.readouterr().out


def test_the_documented_commands_for_gpt_neox_20b_know_network_and_tokenizer(place, capsys):
    text = (ROOT / "docs/checkpoints.md").read_text(encoding="utf-8")
    section = text.partition("## Checkpoints of GPT-NeoX\n")[2].partition("\n## ")[0]
    (own,) = re.findall(r"^```yaml\n(.*?)^```", section, flags=re.DOTALL | re.MULTILINE)
    (commands,) = re.findall(r"^```bash\n(.*?)^```", section, flags=re.DOTALL | re.MULTILINE)
    (place / "my_20B.yml").write_text(own)
    generate, export, import_neox = (shlex.split(line) for line in commands.splitlines())
    assert generate[0] == "./deepy.py"
    assert deepy([*generate[1:], "--check", "--elsewhere"]) == 0, capsys.readouterr().err
    assert "44 layers x 6144" in capsys.readouterr().out
    for command, flag, after in (
        (export, "--config_file", "--output_dir"),
        (import_neox, "--config", "-o"),
    ):
        files = command[command.index(flag) + 1 : command.index(after)]
        settings = settings_of(place / "20B_checkpoints/global_step150000", files)
        assert settings.shape(50277).num_layers == 44
        assert settings.vocab_file == yaml.safe_load(own)["vocab_file"]


def test_the_commands_in_local_setup_make_the_files_that_it_names(place, capsys):
    text = (ROOT / "configs/local_setup.yml").read_text(encoding="utf-8")
    download, preprocess = re.findall(r"^#   (\w.*)$", text, flags=re.MULTILINE)
    *_, vocab, merges, _, folder = shlex.split(download)
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = [*sorted(ByteLevel.alphabet()), "<|endoftext|>"]
    (place / folder).mkdir(parents=True)
    (place / folder / vocab).write_text(json.dumps({t: k for k, t in enumerate(tokens)}))
    (place / folder / merges).write_text("#version: 0.2\n")
    (place / "my_text.txt").write_text("a text of mine\n\n" * 40)
    words = shlex.split(preprocess)
    assert words[:2] == ["python", "tools/preprocess_data.py"]
    preprocess_data.main(words[2:])
    model = "configs/cpu.yml"
    assert deepy(["train.py", model, "configs/local_setup.yml", "--check"]) == 0, (
        capsys.readouterr().err
    )
