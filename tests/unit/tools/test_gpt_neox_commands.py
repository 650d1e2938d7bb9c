"""Commands of GPT-NeoX's README: they work, or name the one that does in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron.tokenizer import DocumentError
from tools.ckpts import (
    convert_hf_llama_to_neox,
    convert_hf_to_sequential,
    convert_neox_to_mamba_ssm,
    convert_raw_llama_weights_to_neox,
    inspect_checkpoints,
    merge20b,
    upload,
)
from tools.corpora.elsewhere import ELSEWHERE
from tools.datasets import prepare

ROOT = Path(__file__).resolve().parents[3]
REGISTRY = (
    "enron pile_subset pile github arxiv europarl freelaw nih pubmed books1 books3 hackernews "
    "openwebtext2 stackexchange ubuntu_irc youtube_subtitles c4 c4_openwebtext enwik8"
).split()
"""Names of GPT-NeoX's datasets, beside ``pass``."""


def answer(capsys: pytest.CaptureFixture[str], command: Any, *arguments: Any) -> str:
    with pytest.raises(SystemExit) as caught:
        command(*arguments)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("name", REGISTRY)
def test_every_dataset_of_the_registry_has_an_answer(name, tmp_path):
    with pytest.raises(DocumentError) as caught:
        prepare.main([name, "-d", str(tmp_path)])
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{name}: is not downloaded here")
    assert "prepare_data.py" in line
    assert not list(tmp_path.iterdir())


def test_no_other_dataset_is_refused():
    assert set(ELSEWHERE) == set(REGISTRY)


def test_without_a_name_the_text_of_this_machine_is_prepared_and_that_is_told(monkeypatch, capsys):
    def stop(args: Any, folder: Path) -> None:
        raise DocumentError(f"reached {args.dataset}")

    monkeypatch.setattr(prepare, "check_arguments", stop)
    with pytest.raises(DocumentError, match="reached this_machine"):
        prepare.main(["-d", "./data"])
    assert "enwik8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (merge20b.main, "import_neox.py"),
        (convert_raw_llama_weights_to_neox.main, "tools/convert_from_hf.py"),
        (convert_neox_to_mamba_ssm.main, "Mamba"),
    ],
)
def test_commands_without_a_purpose_name_another(capsys, command, words):
    assert words in answer(capsys, command)


def test_a_model_on_the_hub_is_to_be_downloaded(capsys):
    arguments = ["--hf-model-name", "pythia-70m", "--output-dir", "out"]
    line = answer(capsys, convert_hf_to_sequential.main, arguments)
    assert "hf download EleutherAI/pythia-70m" in line
    assert "convert_from_hf.py --input_dir pythia-70m --output_dir out" in line
    line = answer(capsys, convert_hf_llama_to_neox.main, ["--model", "some/llama", "--tp", "2"])
    assert "hf download some/llama" in line


def test_a_downloaded_model_is_imported(capsys, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("tools.ckpts.doors.convert_from_hf", calls.append)
    arguments = ["--model", str(tmp_path), "--model_path", "out", "--tp", "2"]
    convert_hf_llama_to_neox.main(arguments)
    assert calls == [["--input_dir", str(tmp_path), "--output_dir", "out"]]
    assert "--tp: not used" in capsys.readouterr().out


def test_gpt_neox_form_of_an_upload_is_translated(capsys, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt_neox"}))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    line = answer(capsys, upload.main, [str(tmp_path), "me/model", "other"])
    assert "'other'" in line
    upload.main([str(tmp_path), "--repo_id", "me/model", "--dry_run"])
    assert "nothing is uploaded" in capsys.readouterr().out


def test_what_cannot_be_inspected_is_refused(capsys, tmp_path):
    assert "--interactive" in answer(capsys, inspect_checkpoints.main, ["x", "-i"])
    assert "two folders" in answer(capsys, inspect_checkpoints.main, ["x", "--compare"])
    assert inspect_checkpoints.main([str(tmp_path / "missing")]) == 2


@pytest.mark.parametrize("name", ["merge20b", "convert_hf_to_sequential", "upload"])
def test_a_command_starts_as_a_file(name):
    done = subprocess.run(
        [sys.executable, ROOT / f"tools/ckpts/{name}.py", "--help"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=100,
    )
    assert done.returncode == (2 if name == "merge20b" else 0), done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_has_to_be_built():
    script = ROOT / "megatron/fused_kernels/setup.py"
    done = subprocess.run(
        [sys.executable, script, "install"], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing has to be built" in done.stdout
