"""Uploads to a Hub of this process: the card, the files, and no token in any output."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from megatron.checkpoint.format import ParameterInfo
from megatron.engine.state import TrainState
from megatron.files import write_json_atomic
from odm import MixtureController, MixtureSchedule
from tests.unit.tools.fake_hub import running_hub
from tools.checkpoints.single_process import write_checkpoint
from tools.hf.uploading import files_of
from tools.upload import main

hub_constants = pytest.importorskip("huggingface_hub.constants")

ROOT = Path(__file__).resolve().parents[3]
TOKEN = "hf_nobodyMayEverReadThis"


def validation(iteration: int, news: float, code: float) -> dict[str, Any]:
    domains = {
        name: {"loss": loss, "perplexity": 0.0, "bits_per_byte": bits}
        for name, loss, bits in (("news", news, 1.25), ("code", code, None))
    }
    return {"event": "validation", "iteration": iteration, "domains": domains, "averages": {}}


@pytest.fixture
def run(tmp_path) -> Path:
    """A run of 12 parameters at iteration 30, whose log goes on to 40."""

    def add_files(folder: Path) -> tuple[str, ...]:
        (folder / "configs").mkdir()
        (folder / "configs/model.yml").write_text("{}")
        (folder / "configs/news_and_code.yml").write_text("{}")
        (folder / "configs/two words.json").write_text("{}")
        settings = {
            "version": 2,
            "model": {"num_layers": 7},
            "optimizer": {"learning_rate": 0.002},
            "data": {"train_paths": ["/data/private/news"]},
        }
        write_json_atomic(folder / "configs/resolved.json", settings)
        counters = TrainState(30, 30, 40, 123456).state_dict()
        state = {"counters": counters, "config_files": ["news_and_code.yml", "model.yml"]}
        write_json_atomic(folder / "state.json", {"loss_scaler": {}, **state})
        mixture = MixtureController(
            ["news", "code"],
            "smoothed_mean",
            MixtureSchedule(0, 2),
            initial_weights=[0.75, 0.25],
            warmup_steps=20,
            update_frequency=5,
        ).state_dict()
        write_json_atomic(folder / "mixture.json", {**mixture, "step": 30, "cursors": [30, 10]})
        return "state.json", "mixture.json"

    write_checkpoint(
        tmp_path / "run",
        "global_step30",
        parameters={"weight": ParameterInfo((3, 4), None, 3)},
        read=lambda name, kind: torch.ones(3, 4),
        add_files=add_files,
    )
    events = [
        {"event": "start", "iteration": 0, "samples_per_epoch": {"news": 60, "code": 40}},
        validation(20, 3.0, 4.0),
        validation(30, 2.0, 3.5),
        validation(40, 1.0, 1.0),
    ]
    (tmp_path / "run/logs").mkdir()
    log = "".join(json.dumps(event) + "\n" for event in events)
    (tmp_path / "run/logs/metrics.jsonl").write_text(log)
    return tmp_path / "run"


@pytest.fixture
def model(tmp_path) -> Path:
    folder = tmp_path / "model"
    (folder / "more").mkdir(parents=True)
    config = {"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"weight": torch.ones(3, 4)}, folder / "model.safetensors")
    (folder / "more/notes.txt").write_text("notes")
    (folder / ".secret").write_text("stays here")
    (folder / "half.tmp").write_text("stays here")
    return folder


@pytest.fixture(autouse=True)
def _online(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_constants, "HF_TOKEN_PATH", str(tmp_path / "no login"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def refusal(arguments: list[str], capsys) -> str:
    """The one line on standard error; no output has the token."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    output = capsys.readouterr()
    assert caught.value.code == 2
    assert TOKEN not in output.out + output.err
    assert output.err.count("\n") == 1, output.err
    return output.err


def test_the_card_tells_data_weights_losses_method_size_and_commands(run, model, capsys):
    arguments = ["--repo_id", "someone/first", "--run_dir", str(run), "--license", "mit"]
    main([str(model), *arguments, "--dry_run"])
    output = capsys.readouterr().out
    _, head, card = output.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "license": "mit",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["gpt_neox", "odm-neox", "online-data-mixing"],
    }
    for line in (
        "A language model (GPTNeoXForCausalLM) trained with ODM-NeoX: 12 parameters, 123,456 "
        "tokens seen in 30 iterations.",
        "| domain | final weight | share of samples | epochs | validation loss | perplexity | "
        "bits per byte |",
        "| news | 0.7500 | 0.7500 | 0.50 | 2.0000 | 7.3891 | 1.2500 |",
        "| code | 0.2500 | 0.2500 | 0.25 | 3.5000 | 33.115 |  |",
        "Losses in nats per token on held-out text of each domain, after iteration 30.",
        "| method | smoothed_mean |",
        "| smoothing_factor | 0.9 |",
        "| warm-up iterations | 20 |",
        "| layers | 7 |",
        "| learning rate | 0.002 |",
        "./deepy.py train.py news_and_code.yml model.yml 'two words.json'",
        'model = AutoModelForCausalLM.from_pretrained("someone/first")',
    ):
        assert line in card.splitlines(), line
    assert "/data/private" not in card
    assert "attention heads" not in card  # the run does not say


def test_a_dry_run_lists_the_files_and_needs_neither_token_nor_network(
    run, model, capsys, monkeypatch
):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    main([str(model), "--repo_id", "first", "--run_dir", str(run), "--dry_run"])
    output = capsys.readouterr().out
    end = output[output.index("4 files of") :].splitlines()
    assert end[0].endswith("for first; nothing is uploaded (--dry_run):")
    assert [line.split()[1] for line in end[1:]] == [
        "README.md",
        "config.json",
        "model.safetensors",
        "more/notes.txt",
    ]
    assert not (model / "README.md").exists()


def test_everything_goes_to_the_hub_in_one_commit(run, model, capsys, monkeypatch):
    with running_hub(TOKEN) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        arguments = ["--repo_id", "first", "--run_dir", str(run), "--message", "first words"]
        main([str(model), *arguments, "--private"])
    output = capsys.readouterr()
    assert f"uploading to {hub.address}/someone/first as someone\n" in output.out
    assert output.out.endswith(f"uploaded 4 files of 0.0 MB to {hub.address}/someone/first\n")
    assert TOKEN not in output.out + output.err
    assert hub.repository["name"] == "first"
    assert hub.repository.get("private") or hub.repository.get("visibility") == "private"
    assert hub.calls[-1] == "/api/models/someone/first/commit/main"
    assert hub.message == "first words"
    assert sorted(hub.files) == ["README.md", "config.json", "model.safetensors", "more/notes.txt"]
    assert hub.files["model.safetensors"] == (model / "model.safetensors").read_bytes()
    assert b'from_pretrained("someone/first")' in hub.files["README.md"]


def test_a_card_that_the_folder_has_goes_along_where_no_run_is_named(model, monkeypatch, capsys):
    (model / "README.md").write_text("# Written by hand\n")
    with running_hub(TOKEN) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        main([str(model), "--repo_id", "someone/first"])
    assert hub.files["README.md"] == b"# Written by hand\n"
    assert f"{model / 'README.md'}: is uploaded as the model card\n" in capsys.readouterr().out


def test_a_card_that_the_run_replaces_is_told(run, model, capsys):
    (model / "README.md").write_text("mine")
    main([str(model), "--repo_id", "someone/first", "--run_dir", str(run), "--dry_run"])
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{model / 'README.md'}: is not uploaded; ")
    assert "mine" not in rest
    assert (model / "README.md").read_text() == "mine"


def test_a_token_that_is_not_accepted_is_one_line_without_it(model, capsys, monkeypatch):
    with running_hub("another") as hub:  # whose answer repeats the token
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        message = refusal([str(model), "--repo_id", "someone/first"], capsys)
    assert message == (
        f"{hub.address}: the token is not accepted; set HF_TOKEN, log in with `hf auth login`, or "
        "correct --token_file (HTTP 401)\n"
    )
    assert hub.files == {}


@pytest.mark.parametrize(
    ("call", "status", "expected"),
    [
        ("/api/repos/create", 403, "the token may not write there; make one with write access, or"),
        ("/api/repos/create", 400, "HTTP 400: "),
        ("/api/models/someone/first/commit/main", 400, "<token> is over its quota"),
        ("/api/models/someone/first/preupload/main", 404, "not found; correct --repo_id or"),
    ],
)
def test_what_the_hub_refuses_is_one_line_without_the_token(
    call, status, expected, model, capsys, monkeypatch
):
    with running_hub(TOKEN) as hub:
        hub.refusals[call] = (status, f"{TOKEN} is over its quota")
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        message = refusal([str(model), "--repo_id", "someone/first"], capsys)
    assert message.startswith(f"{hub.address}/someone/first: ")
    assert expected in message
    assert hub.files == {}


def test_a_dead_endpoint_is_one_line(model, capsys, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", address)
        message = refusal([str(model), "--repo_id", "someone/first"], capsys)
    assert message.startswith(f"{address}: ")
    assert message.endswith("; check the network and HF_ENDPOINT\n")


def test_the_token_of_a_file_is_used_and_never_shown(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_ofSomebodyElse")
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    arguments = [str(model), "--repo_id", "someone/first", "--token_file", str(file)]
    with running_hub(TOKEN) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        main(arguments)
        assert "config.json" in hub.files
    file.write_text(f"{TOKEN} {TOKEN}")
    assert refusal(arguments, capsys) == (
        f"--token_file: {file}: must contain one token and nothing else\n"
    )
    file.unlink()
    assert refusal(arguments, capsys) == f"--token_file: {file}: No such file or directory\n"


def test_what_is_missing_is_named(model, run, tmp_path, capsys, monkeypatch):
    nothing = tmp_path / "nothing"
    for arguments, message in [
        ([str(nothing), "--repo_id", "a"], f"{nothing}: no such folder\n"),
        (
            [str(model), "--repo_id", "a", "--run_dir", str(nothing)],
            f"{nothing}: there is no such folder; give the save folder of a run\n",
        ),
        (
            [str(model), "--repo_id", "a", "--run_dir", str(run), "--iteration", "7"],
            f"{run}: no checkpoint of iteration 7; found: 30\n",
        ),
    ]:
        assert refusal(arguments, capsys) == message
    monkeypatch.delenv("HF_TOKEN")
    assert refusal([str(model), "--repo_id", "a"], capsys) == (
        "no token: set HF_TOKEN, log in with `hf auth login`, or use --token_file\n"
    )


def test_a_name_that_the_hub_cannot_have_is_refused(model, capsys, monkeypatch):
    with running_hub(TOKEN) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        message = refusal([str(model), "--repo_id", "someone/no--name"], capsys)
    assert message.endswith("; correct --repo_id\n")
    assert hub.files == {}


def test_the_command_shows_no_token_even_when_told_to_show_everything(model, run):
    """In a process of its own, with the debug output of huggingface_hub on."""
    with running_hub(TOKEN) as hub:
        environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0"}
        ended = subprocess.run(
            [
                *(sys.executable, "tools/upload.py", str(model), "--repo_id", "someone/first"),
                *("--run_dir", str(run)),
            ],
            cwd=ROOT,
            env={**environment, "HF_DEBUG": "1", "HF_HUB_VERBOSITY": "debug"},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert ended.returncode == 0, ended.stderr
    assert TOKEN not in ended.stdout + ended.stderr
    assert "README.md" in hub.files


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("weights.bin", "../secret.txt"),
        ("more/key", "/etc/hostname"),
        ("logs", "../elsewhere"),
        ("again", "more"),
        ("gone", "nothing"),
        ("round", "round"),
        ("settings", ".env"),
        ("half", "part.tmp"),
    ],
)
def test_a_link_that_is_no_file_of_the_folder_is_refused(tmp_path, model, capsys, name, target):
    (tmp_path / "secret.txt").write_text("stays here")
    (tmp_path / "elsewhere").mkdir()
    for left_out in (".env", "part.tmp"):
        (model / left_out).write_text("stays here")
    (model / name).symlink_to(target)
    message = refusal([str(model), "--repo_id", "someone/first", "--dry_run"], capsys)
    assert message.startswith(f"{model / name}: is a link to {target}, which is no file in {model}")


def test_a_link_to_a_file_of_the_folder_goes_along_as_the_file(tmp_path, model):
    (model / "same.safetensors").symlink_to("model.safetensors")
    other_name = tmp_path / "by another name"
    other_name.symlink_to(model)
    names = ["config.json", "model.safetensors", "more/notes.txt", "same.safetensors"]
    assert list(files_of(model)) == list(files_of(other_name)) == names
