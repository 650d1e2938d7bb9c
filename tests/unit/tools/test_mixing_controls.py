"""Controls of a real run: its frozen average, and the comparison of the two."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from megatron.checkpoint.format import read_content
from megatron.neox_arguments import NeoXArgs, resolve
from megatron.reporting.run_log import read_run_log
from megatron.training import pretrain
from odm.replay import main as replay
from tests.process_group import engine_of_one
from tests.tiny import DOMAINS, tiny_config, write_tiny_corpus
from tools.compare_runs import main as compare
from tools.freeze_mixture import main as freeze
from tools.plot_mixture import main as plot

ROOT = Path(__file__).resolve().parents[3]


def train(file: Path) -> None:
    config = resolve(NeoXArgs.from_ymls([file]), world_size=1)
    with engine_of_one(config):
        pretrain(config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A finished run in ``run``, which two files describe, and its control in ``run-frozen``."""
    folder = tmp_path_factory.mktemp("controls")
    settings = tiny_config(
        write_tiny_corpus(folder / "corpus"),
        folder,
        train_iters=12,
        eval_interval=4,
        checkpoint_factor=6,
        log_dir=str(folder / "logs"),
        data_sampling_max_epochs={"noise": 3},
        data_sampling_warmup_steps=2,
        data_sampling_heldout_interval=4,
    )
    paths = [key for key in settings if key.endswith("_paths")]
    (folder / "data.yml").write_text(json.dumps({key: settings.pop(key) for key in paths}))
    (folder / "model.yml").write_text(json.dumps(settings))
    config = resolve(NeoXArgs.from_ymls([folder / "model.yml", folder / "data.yml"]), world_size=1)
    with engine_of_one(config):
        pretrain(config)
    assert freeze([str(folder / "run"), "-o", str(folder / "static.yml")]) == 0
    train(folder / "static.yml")
    return folder


def start_of(log: Path) -> dict[str, Any]:
    return next(event for event in read_run_log(log) if event["event"] == "start")


def test_the_weights_are_the_samples_drawn_divided_by_all(folder):
    drawn = dict.fromkeys(DOMAINS, 0)
    for event in read_run_log(folder / "logs"):
        if event["event"] == "train":
            for name, tokens in event["tokens"].items():
                drawn[name] += tokens // 16
    assert sum(drawn.values()) == 12 * 8
    written = yaml.safe_load((folder / "static.yml").read_text())
    assert written["train_data_weights"] == [count / 96 for count in drawn.values()]


def test_the_control_has_everything_else_of_the_run(folder):
    written = yaml.safe_load((folder / "static.yml").read_text())
    original = {
        **yaml.safe_load((folder / "model.yml").read_text()),
        **yaml.safe_load((folder / "data.yml").read_text()),
    }
    assert {key for key in original if original[key] != written.get(key)} == {
        *("save", "load", "log_dir", "data_sampling_method", "data_sampling_warmup_steps"),
        *("data_sampling_update_frequency", "data_sampling_smoothing_factor"),
        "data_sampling_heldout_interval",
    }
    assert written.keys() - original.keys() == {"train_data_weights"}
    assert written["save"] == written["load"] == str(folder / "run-frozen")
    assert written["log_dir"] == str(folder / "logs-frozen")


def test_the_control_trains_alone_with_these_weights_and_the_same_seed(folder):
    run, control = (start_of(folder / name)["mixture"] for name in ("logs", "logs-frozen"))
    written = yaml.safe_load((folder / "static.yml").read_text())
    assert (run["method"], control["method"]) == ("smoothed_mean", "static")
    assert control["initial_weights"] == written["train_data_weights"]
    assert control["seed"] == run["seed"] == 7
    assert control["constraints"] == run["constraints"]
    assert read_content(folder / "run-frozen/global_step12", "mixture.json")["step"] == 12


@pytest.mark.parametrize("kind", ["uniform", "natural"])
def test_the_twins_have_equal_weights_or_those_of_the_sizes(folder, tmp_path, kind, capsys):
    output = tmp_path / "made" / "twin.yml"
    assert freeze([str(folder / "run"), f"--{kind}", "-o", str(output)]) == 0
    sizes = start_of(folder / "logs")["samples_per_epoch"]
    natural = [size / sum(sizes.values()) for size in sizes.values()]
    written = yaml.safe_load(output.read_text())
    assert written["train_data_weights"] == (natural if kind == "natural" else [1.0, 1.0, 1.0])
    assert written["save"] == str(folder / f"run-{kind}")
    shown = capsys.readouterr().out
    assert "letters" in shown
    assert "note" not in shown
    checked = subprocess.run(
        [sys.executable, str(ROOT / "deepy.py"), "train.py", str(output), "--check"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert checked.returncode == 0, checked.stderr


def test_an_earlier_checkpoint_is_frozen_with_a_note(folder, tmp_path, capsys):
    arguments = [str(folder / "run"), "--iteration", "6", "--save", str(tmp_path / "new")]
    assert freeze([*arguments, "-o", str(tmp_path / "static.yml")]) == 0
    assert "note: the average is that of 6 of the run's 12 iterations" in capsys.readouterr().out
    written = yaml.safe_load((tmp_path / "static.yml").read_text())
    assert sum(written["train_data_weights"]) == pytest.approx(1)
    assert written["save"] == written["load"] == str(tmp_path / "new")


@pytest.mark.parametrize(
    ("run", "arguments", "message"),
    [
        ("corpus", [], "no checkpoint"),
        ("nothing", [], "there is no such folder"),
        ("run-frozen", [], "static already"),
        ("run", [], "run-frozen: contains checkpoints; name another folder with --save"),
        ("run", ["--iteration", "5"], "no checkpoint of iteration 5; found: 6, 12"),
        ("run", ["-o", "model.yml"], "model.yml: exists already"),
    ],
)
def test_what_cannot_be_frozen_is_one_line(folder, capsys, monkeypatch, run, arguments, message):
    monkeypatch.chdir(folder)
    output = [] if "-o" in arguments else ["-o", str(folder / "x.yml")]
    before = (folder / "model.yml").read_text()
    assert freeze([str(folder / run), *arguments, *output]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (folder / "x.yml").exists()
    assert (folder / "model.yml").read_text() == before


def test_the_run_and_its_control_differ_in_the_mixing_alone(folder, tmp_path, capsys):
    run, control = folder / "logs", folder / "logs-frozen"
    picture = tmp_path / "made" / "pair.png"
    assert compare([str(control), str(run), "--json", "-o", str(picture)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["iteration"] == 12
    assert found["notes"] == [
        "one seed: differences below the noise between seeds mean nothing; give runs with other "
        "seeds too"
    ]
    last = {
        name: [event for event in read_run_log(log) if event["event"] == "validation"][-1]
        for name, log in (("control", control), ("run", run))
    }
    losses = {
        name: [result["loss"] for result in event["domains"].values()]
        for name, event in last.items()
    }
    expected = {
        name: one - other
        for name, one, other in zip(DOMAINS, losses["run"], losses["control"], strict=True)
    }
    arm = found["arms"][1]
    assert {name: d["mean"] for name, d in arm["domains"].items()} == pytest.approx(expected)
    assert arm["seeds"] == [7]
    mean = last["run"]["averages"]["avg_lm_loss"] - last["control"]["averages"]["avg_lm_loss"]
    assert arm["differences"]["mean_loss"]["mean"] == pytest.approx(mean)
    assert arm["mean_perplexity"] == pytest.approx(last["run"]["averages"]["avg_ppl"])
    assert found["arms"][0]["iterations_to_target"]["mean_loss"][0] <= 12
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_run_is_replayed_although_epochs_limit_its_weights(folder, capsys):
    limits = [limit["name"] for limit in start_of(folder / "logs")["mixture"]["constraints"]]
    assert limits == ["epoch_cap"]
    assert replay([str(folder / "logs")]) == 0
    assert "12 iterations replayed" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["exp3", "naive_validation", "static"])
def test_other_methods_answer_to_the_losses_of_the_run(folder, capsys, method):
    assert replay([str(folder / "logs"), "--mixer", method, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["iterations"] == list(range(1, 13))
    answers = np.array([found["other"][name] for name in DOMAINS])
    np.testing.assert_allclose(answers.sum(axis=0), 1.0)
    is_constant = np.allclose(answers, answers[:, :1])
    assert is_constant == (method == "static")


def test_every_update_is_in_the_log_with_what_the_limit_did(folder):
    events = read_run_log(folder / "logs")
    updates = {event["iteration"]: event for event in events if event["event"] == "update"}
    trained = {event["iteration"]: event for event in events if event["event"] == "train"}
    assert list(updates) == list(range(3, 13))  # after a warm-up of two iterations
    for step, update in updates.items():
        assert list(update["proposal"]) == list(DOMAINS)
        assert set(update["limits"]["epoch_cap"]) <= set(DOMAINS)
        after = update.get("weights", update["proposal"])
        if step < 12:
            assert after == trained[step + 1]["weights"]
    assert not [
        event for event in read_run_log(folder / "logs-frozen") if event["event"] == "update"
    ]


def test_the_learning_curves_of_the_run_are_numbers_and_a_picture(folder, tmp_path, capsys):
    picture = tmp_path / "curves.png"
    assert plot([str(folder / "logs"), "--json", "-o", str(picture)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"] == 12 * 8 * 16
    assert found["domains"]["letters"]["slope_per_doubling"] < 0
    assert picture.read_bytes().startswith(b"\x89PNG")
