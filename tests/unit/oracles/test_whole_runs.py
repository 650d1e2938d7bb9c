"""Whole runs in this process, of a second each: what they log, measure, save and go on from."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron.checkpoint.format import checkpoint_steps
from megatron.engine.state import TrainState
from megatron.neox_arguments import ConfigError, NeoXArgs, resolve
from megatron.reporting.run_log import read_run_log
from megatron.training import pretrain
from odm.replay import main as replay
from tests.process_group import engine_of_one
from tests.tiny import DOMAINS, tiny_config, write_tiny_corpus

SETTINGS = {"train_iters": 8, "eval_interval": 3, "checkpoint_factor": 5, "min_lr": 0.001}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> dict[str, list[str]]:
    return write_tiny_corpus(tmp_path_factory.mktemp("corpus"))


def run(corpus: dict[str, list[str]], folder: Path, **changes: Any) -> TrainState:
    values = tiny_config(corpus, folder, **{**SETTINGS, **changes})
    config = resolve(NeoXArgs.from_dict(values), world_size=1)
    with engine_of_one(config):
        return pretrain(config)


def events(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    return [event for event in read_run_log(folder / "run") if event["event"] in kinds]


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory) -> tuple[Path, TrainState]:
    folder = tmp_path_factory.mktemp("finished")
    return folder, run(corpus, folder)


def test_the_order_of_a_run(finished):
    folder, state = finished
    found = [
        (event["event"], event["iteration"])
        for event in events(folder, "start", "train", "validation", "test", "save", "stop")
    ]
    trained = [("train", step) for step in range(1, 9)]
    assert found == [
        ("start", 0),
        *trained[:3],
        ("validation", 3),
        *trained[3:5],
        ("save", 5),
        trained[5],
        ("validation", 6),
        *trained[6:],
        ("save", 8),
        ("validation", 8),
        ("test", 8),
        ("stop", 8),
    ]
    assert events(folder, "stop")[0]["reason"] == "done"
    assert (state.step, state.applied_steps, state.stop) == (8, 8, False)
    assert checkpoint_steps(folder / "run") == [5, 8]
    assert (folder / "run/latest").read_text() == "global_step8"


def test_what_a_run_says_of_itself(finished, corpus):
    (start,) = events(finished[0], "start")
    # tables 2 * 512 * 32; a block 4 * 32 + 96 * 33 + 32 * 33 + 128 * 33 + 32 * 129; the last norm
    assert start["parameters"] == 32_768 + 2 * (128 + 3168 + 1056 + 4224 + 4128) + 64
    assert start["layout"] == {"pipe": 1, "data": 1, "model": 1}
    assert (start["zero_stage"], start["precision"]) == (0, "fp32")
    sizes = [Path(f"{prefix}.bin").stat().st_size // 2 for prefix in corpus["train"]]
    expected = [(tokens - 1) // 16 for tokens in sizes]  # neighbours share a token
    assert list(start["samples_per_epoch"].values()) == expected


def test_figures_of_the_iterations(finished, corpus):
    folder, _ = finished
    sizes = np.array(list(events(folder, "start")[0]["samples_per_epoch"].values()))
    samples, trained = np.zeros(3), events(folder, "train")
    for number, event in enumerate(trained, start=1):
        assert (event["consumed_samples"], event["consumed_tokens"]) == (8 * number, 128 * number)
        tokens = np.array(list(event["tokens"].values()))
        samples += tokens / 16
        assert tokens.sum() == 128
        assert list(event["epochs"].values()) == pytest.approx((samples / sizes).tolist())
        assert sum(event["weights"].values()) == pytest.approx(1)
        losses = [0.0 if loss is None else loss for loss in event["losses"].values()]
        assert event["lm_loss"] == pytest.approx(np.dot(losses, tokens) / 128)
        # a warm-up of 0.08 iterations, then a cosine from 0.01 to 0.001
        progress = 0.0 if number == 1 else (number - 1 - 0.08) / 7.92
        rate = 0.001 + 0.0045 * (1 + math.cos(math.pi * progress))
        assert event["learning_rate"] == pytest.approx(rate, rel=1e-6)
    assert trained[0]["losses"]["letters"] == pytest.approx(math.log(512), rel=0.1)
    assert trained[0]["weights"] == {name: pytest.approx(1 / 3) for name in DOMAINS}


def test_the_weights_of_the_log_follow_from_its_losses(finished, capsys):
    assert replay([str(finished[0] / "run/logs/metrics.jsonl")]) == 0


def test_held_out_losses_fall_and_their_averages_are_those_of_the_domains(finished):
    first, _, last = events(finished[0], "validation")
    assert list(first["domains"]) == list(DOMAINS)
    assert last["averages"]["avg_lm_loss"] < first["averages"]["avg_lm_loss"]
    for event in (first, last, *events(finished[0], "test")):
        losses = [domain["loss"] for domain in event["domains"].values()]
        perplexities = [math.exp(loss) for loss in losses]
        assert event["averages"]["avg_lm_loss"] == pytest.approx(sum(losses) / 3)
        assert event["averages"]["avg_ppl"] == pytest.approx(sum(perplexities) / 3)
        assert event["averages"]["worst_lm_loss"] == max(losses)


def test_a_run_in_two_parts_is_the_whole_run(finished, corpus, tmp_path):
    state = run(corpus, tmp_path, exit_interval=4)
    assert (state.step, state.stop) == (4, True)
    assert checkpoint_steps(tmp_path / "run") == [4]
    assert [event["iteration"] for event in events(tmp_path, "validation", "test")] == [3]
    run(corpus, tmp_path)
    assert events(tmp_path, "resume")[0]["iteration"] == 4
    timeless = ("seconds", "step_seconds", "tokens_per_second")
    whole, parts = (
        [{k: v for k, v in event.items() if k not in timeless} for event in events(f, "train")]
        for f in (finished[0], tmp_path)
    )
    assert parts == whole
    ends = [events(folder, "test")[0]["averages"] for folder in (finished[0], tmp_path)]
    assert ends[0] == ends[1]
    mixtures = [
        json.loads((folder / "run/global_step8/mixture.json").read_text())
        for folder in (finished[0], tmp_path)
    ]
    assert mixtures[0] == mixtures[1]


def test_data_that_changed_since_the_checkpoint_are_told(corpus, tmp_path):
    run(corpus, tmp_path, exit_interval=1)
    grown = write_tiny_corpus(tmp_path / "grown", documents=60)
    changed = {**corpus, "train": [corpus["train"][0], grown["train"][1], corpus["train"][2]]}
    run(changed, tmp_path, train_iters=2)
    (line,) = [
        event["message"]
        for event in events(tmp_path, "warning")
        if "the data changed since" in event["message"]
    ]
    assert "domain digits has " in line
    assert "(1 of 3 domains changed)" in line


@pytest.mark.parametrize("keys", [{"load": None}, {"finetune": True}])
def test_a_run_from_the_start_does_not_replace_checkpoints(keys, corpus, tmp_path):
    run(corpus, tmp_path, exit_interval=1)
    with pytest.raises(ConfigError, match="checkpoints up to iteration 1"):
        run(corpus, tmp_path, **keys)
    assert checkpoint_steps(tmp_path / "run") == [1]


def test_a_finished_run_has_nothing_to_do_and_writes_nothing(finished, corpus):
    folder, _ = finished
    before = (folder / "run/global_step8/index.json").stat().st_mtime_ns
    assert run(corpus, folder).step == 8
    assert (folder / "run/global_step8/index.json").stat().st_mtime_ns == before
    assert len(events(folder, "train")) == 8
