"""Commands of GPT-NeoX's README: they work, or name the one that does in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron.tokenizer import DocumentError
from tools.ckpts.doors import DOORS
from tools.corpora.elsewhere import ELSEWHERE
from tools.datasets import prepare

ROOT = Path(__file__).resolve().parents[3]
REGISTRY = (
    "enron pile_subset pile github arxiv europarl freelaw nih pubmed books1 books3 hackernews "
    "openwebtext2 stackexchange ubuntu_irc youtube_subtitles c4 c4_openwebtext enwik8"
).split()
"""Names of GPT-NeoX's datasets, beside ``pass``."""

PYTHIA, LLAMA = "convert_hf_to_sequential.py", "convert_hf_llama_to_neox.py"


def answer(capsys: pytest.CaptureFixture[str], command: str, *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        DOORS[command](arguments)
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
        ("merge20b.py", "import_neox.py"),
        ("convert_raw_llama_weights_to_neox.py", "tools/convert_from_hf.py"),
        ("convert_neox_to_mamba_ssm.py", "Mamba"),
    ],
)
def test_commands_without_a_purpose_name_another(capsys, command, words):
    assert words in answer(capsys, command)


def test_a_model_on_the_hub_is_to_be_downloaded(capsys):
    line = answer(capsys, PYTHIA, "--hf-model-name", "pythia-70m", "--output-dir", "out")
    assert "hf download EleutherAI/pythia-70m --local-dir pythia-70m)" in line
    assert line.endswith("convert_from_hf.py --input_dir pythia-70m --output_dir out")
    for name in ("some/llama", "some/llama/"):
        line = answer(capsys, LLAMA, "--model", name)
        assert "hf download some/llama --local-dir llama)" in line


@pytest.mark.parametrize("model", ["/no/such/folder", "./missing", "a/b/c", "~/llama", "a b/c"])
def test_a_path_that_is_no_folder_is_not_to_be_downloaded(capsys, model):
    for command, flag in ((LLAMA, "--model"), (PYTHIA, "--hf-model-name")):
        line = answer(capsys, command, flag, model)
        assert line.startswith(f"{command}: {model}: there is no such folder")
        assert "hf download" not in line


def test_a_file_in_the_place_of_a_folder_is_named(capsys, tmp_path):
    (tmp_path / "llama").write_text("")
    line = answer(capsys, LLAMA, "--model", str(tmp_path / "llama"))
    assert line.startswith(f"{LLAMA}: {tmp_path / 'llama'}: is a file")


def test_revision_cache_and_test_are_in_the_commands_that_are_shown(capsys):
    flags = ("--hf-model-name", "pythia-70m", "--revision", "143000", "--cache-dir", "my models")
    download = (
        "hf download EleutherAI/pythia-70m --revision step143000 --local-dir 'my models/pythia-70m'"
    )
    line = answer(capsys, PYTHIA, *flags, "--test")
    assert download in line
    assert line.endswith("--input_dir 'my models/pythia-70m' --output_dir OUTPUT --verify")
    line = answer(capsys, PYTHIA, *flags, "--download-only")
    assert line == f"{PYTHIA}: --download-only: run {download}"


@pytest.fixture
def imports(monkeypatch) -> list[list[str]]:
    calls: list[list[str]] = []
    monkeypatch.setattr("tools.convert_from_hf.main", calls.append)
    return calls


def test_a_downloaded_model_is_imported(capsys, tmp_path, imports):
    folder = str(tmp_path)
    assert DOORS[LLAMA](["--model", folder, "--model_path", "out", "--tp", "2"]) == 0
    assert "--tp: not needed; a checkpoint loads on any layout" in capsys.readouterr().out
    assert DOORS[PYTHIA](["--hf-model-name", folder, "--output-dir", "out", "--test"]) == 0
    command = ["--input_dir", folder, "--output_dir", "out"]
    assert imports == [command, [*command, "--verify"]]


def test_each_flag_that_changes_nothing_has_its_own_reason(capsys, tmp_path, imports):
    flags = {
        "--revision": ("143000", "whatever revision"),
        "--cache-dir": ("models", "nothing is downloaded"),
        "--config": ("70M.yml", "config.json has the network"),
        "--ckpt-tmp-dir": ("tmp", "no checkpoint is written twice"),
    }
    words = [word for flag, (value, _) in flags.items() for word in (flag, value)]
    DOORS[PYTHIA](["--hf-model-name", str(tmp_path), "--output-dir", "out", *words])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(flags)
    for flag, (_, reason) in flags.items():
        assert [reason in line for line in lines if f"{flag}: not needed" in line] == [True], flag


def test_a_folder_is_not_downloaded_and_needs_an_output(capsys, tmp_path, imports):
    line = answer(capsys, PYTHIA, "--hf-model-name", str(tmp_path), "--download-only")
    assert "nothing has to be downloaded" in line
    assert "--output-dir" in answer(capsys, PYTHIA, "--hf-model-name", str(tmp_path))
    assert "--model_path" in answer(capsys, LLAMA, "--model", str(tmp_path))
    assert imports == []


def test_gpt_neox_form_of_an_upload_is_translated(capsys, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt_neox"}))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert "'other'" in answer(capsys, "upload.py", str(tmp_path), "me/model", "other")
    DOORS["upload.py"]([str(tmp_path), "--repo_id", "me/model", "--dry_run"])
    assert "nothing is uploaded" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["x", "-i"], "--interactive"),
        (["x", "--attributes"], "--attributes"),
        (["x", "--attributes", "module"], "--attributes"),
        (["x", "--compare"], "two folders"),
        (["x,", "--compare"], "two folders"),
        (["x", "--diff"], "--compare"),
    ],
)
def test_what_cannot_be_inspected_is_refused(capsys, words, part):
    assert part in answer(capsys, "inspect_checkpoints.py", *words)


def test_the_code_of_an_inspection_is_returned(tmp_path):
    assert DOORS["inspect_checkpoints.py"]([str(tmp_path / "missing")]) == 2


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
    assert f"{name}.py" in done.stdout + done.stderr


def test_each_file_is_a_door_that_works():
    files = {path.name for path in (ROOT / "tools/ckpts").glob("*.py")}
    assert files == {*DOORS, "__init__.py", "doors.py", "convert_neox_to_hf.py"}


def test_nothing_has_to_be_built():
    script = ROOT / "megatron/fused_kernels/setup.py"
    done = subprocess.run(
        [sys.executable, script, "install"], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing has to be built" in done.stdout
