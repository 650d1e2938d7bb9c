"""Weights that follow held-out losses: the same on every layout, after a kill, and in a replay."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from megatron.reporting.run_log import read_run_log
from odm.replay import read_run_log as read_replay_log
from odm.replay import replay
from tests.distributed.cuts import some_cuts
from tests.distributed.many_runs import train_all
from tests.distributed.runs import curve, log_of, train_events
from tests.distributed.test_layouts import SGD, assert_same_curve
from tests.distributed.test_resume import assert_killed_run_is_exact
from tests.tiny import write_tiny_corpus

pytestmark = pytest.mark.distributed

MEASURED = {
    "data_sampling_heldout_interval": 2,
    "data_sampling_heldout_samples": 5,
    "data_sampling_heldout_parts": 2,
    "train_iters": 6,
}
HELD_OUT = {**MEASURED, "data_sampling_reward": "heldout"}
DROPOUT = {"hidden_dropout": 0.1, "attention_dropout": 0.1}
ALONE: dict[str, dict[str, Any]] = {
    "single": {**HELD_OUT, **SGD},
    "saved": {**HELD_OUT, **SGD, "extra_save_iters": [3]},
    "plain": {"train_iters": 6, **DROPOUT},
    "measured": {**MEASURED, **DROPOUT},
    "naive_validation": {**HELD_OUT, "data_sampling_method": "naive_validation"},
    "learning_curve": {**HELD_OUT, "data_sampling_method": "learning_curve"},
    "generalization": {
        **MEASURED,
        "validation_based_reward": True,
        "data_sampling_method": "exp3",
        "batch_normalized_reward": True,
        "scale_by_reward_loss_diff": True,
    },
}
METHODS = ("naive_validation", "learning_curve", "generalization")
CUTS = some_cuts("dp2", "dp2-zero1", "dp2-zero2", "dp2-zero3", "tp2", "tp2-sp", "pp2")
RECOMPUTED = {"pipe_parallel_size": 2, "checkpoint_activations": True, **DROPOUT, "train_iters": 6}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> dict[str, list[str]]:
    return write_tiny_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("held_out")
    train_all(corpus, folder, 1, ALONE)
    saved = {"load": str(folder / "saved/run"), "iteration": 3}
    cut = {name: {**HELD_OUT, **SGD, **keys} for name, keys in CUTS.items()}
    moved = {f"moved-{name}": {**cut[name], **saved} for name in ("dp2-zero1", "tp2", "pp2")}
    pipeline = {"pipe-plain": RECOMPUTED, "pipe-measured": {**MEASURED, **RECOMPUTED}}
    train_all(corpus, folder, 2, {**cut, **moved, **pipeline})
    return folder


def measurements(folder: Path) -> dict[int, dict[str, Any]]:
    """Iteration -> fields of the measurement after it, without its cost."""
    events = [e for e in read_run_log(log_of(folder / "run.yml")) if e["event"] == "held_out"]
    cost = ("event", "seconds", "share_of_time")
    return {e["iteration"]: {k: v for k, v in e.items() if k not in cost} for e in events}


@pytest.mark.parametrize("cut", CUTS)
def test_two_processes_measure_and_follow_what_one_does(runs, cut):
    assert_same_curve(runs / cut, runs / "single")
    got, want = measurements(runs / cut), measurements(runs / "single")
    assert list(got) == list(want) == [2, 4, 6]
    for step, expected in want.items():
        assert got[step]["mean_loss"] == pytest.approx(expected["mean_loss"], rel=1e-4)
        assert got[step]["token_count"] == expected["token_count"]


def test_weights_change_after_a_measurement_alone(runs):
    weights = [event["weights"] for event in train_events(runs / "single/run.yml").values()]
    changed = [step for step, (a, b) in enumerate(pairwise(weights), start=1) if a != b]
    assert changed == [4], "eps is 1 / K until step K ln K = 3.3, and step 6 is the last"


@pytest.mark.parametrize(
    ("plain", "measured"), [("plain", "measured"), ("pipe-plain", "pipe-measured")]
)
def test_a_measurement_that_is_not_used_changes_no_bit_of_a_run_with_dropout(runs, plain, measured):
    assert curve(runs / measured / "run.yml") == curve(runs / plain / "run.yml")
    assert list(measurements(runs / measured)) == [2, 4, 6]


@pytest.mark.parametrize("cut", ["dp2-zero1", "tp2", "pp2"])
def test_a_checkpoint_continues_on_another_layout(runs, cut):
    want, got = train_events(runs / "saved/run.yml"), train_events(runs / f"moved-{cut}/run.yml")
    assert list(got) == [4, 5, 6]
    for step, event in got.items():
        assert event["lm_loss"] == pytest.approx(want[step]["lm_loss"], rel=1e-4)
        assert event["weights"] == pytest.approx(want[step]["weights"], rel=1e-4)
    before, after = measurements(runs / "saved"), measurements(runs / f"moved-{cut}")
    for name in ("mean_loss", "change", "log_step"):
        assert after[6][name] == pytest.approx(before[6][name], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("run", ["single", "pp2", *METHODS])
def test_a_replay_of_the_log_gives_the_same_weights(runs, run):
    log = read_replay_log(log_of(runs / run / "run.yml").read_text().splitlines())
    assert replay(log).largest_difference <= 1e-12
    assert len(log.held_out) == 3


def test_the_log_says_what_a_measurement_costs(runs):
    events = read_run_log(log_of(runs / "single/run.yml"))
    costs = [(e["seconds"], e["share_of_time"]) for e in events if e["event"] == "held_out"]
    assert all(seconds > 0 and 0 < share < 1 for seconds, share in costs)
    mixture = json.loads((runs / "single/run/global_step6/mixture.json").read_text())
    assert mixture["configuration"]["reward"]["source"] == "heldout"
    assert mixture["held_out"]["visits"] == 3


def test_a_killed_run_resumes_bit_for_bit(corpus, tmp_path):
    options = {**HELD_OUT, "data_sampling_heldout_interval": 3, **DROPOUT}
    del options["train_iters"]
    assert_killed_run_is_exact(corpus, tmp_path, kills=[14], iterations=24, **options)
    assert measurements(tmp_path / "killed") == measurements(tmp_path / "straight")
