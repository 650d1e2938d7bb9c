"""Soft prompt tuning as a user runs it: begun on a model, continued, on several layouts, used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.checkpoint.format import CheckpointReader
from megatron.model.soft_prompt import SOFT_PROMPT_NAME
from megatron.reporting.run_log import read_run_log
from tests.distributed.cuts import some_cuts
from tests.distributed.many_runs import train_all
from tests.distributed.runs import train_events
from tests.distributed.test_inference_layouts import read_run
from tests.tiny import write_tiny_corpus

pytestmark = pytest.mark.distributed

TUNING = {"num_tokens": 4, "init_string": "abc"}
CUTS = some_cuts("dp2", "dp2-zero1", "dp2-zero2", "dp2-zero3", "tp2", "tp2-zero1")
MORE = {"dp2-zero3": {"log_param_norm": True}}
STRONG: dict[str, Any] = {"optimizer": {"type": "Adam", "params": {"lr": 0.3}}, "weight_decay": 0}


def tuning(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "max_position_embeddings": 20,
        "soft_prompt_tuning": TUNING,
        "load": str(folder / "base/run"),
        "finetune": True,
        "train_iters": 4,
        "checkpoint_factor": 2,
        **changes,
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> dict[str, list[str]]:
    return write_tiny_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    resumed = {"load": str(folder / "tuned/run"), "iteration": 2, "finetune": False}
    runs = {
        "base": {"train_iters": 2, "max_position_embeddings": 20},
        "tuned": tuning(folder),
        "resumed": tuning(folder, **resumed),
        "strong": tuning(folder, train_iters=30, **STRONG),
        "bf16": tuning(folder, precision="bfloat16", train_iters=2),
    }
    train_all(corpus, folder, 1, runs)
    return folder


def checkpoint(folder: Path, step: int) -> CheckpointReader:
    return CheckpointReader(folder / f"run/global_step{step}")


def test_only_the_prompt_is_trained_and_saved_with_its_model(runs):
    base, tuned = checkpoint(runs / "base", 2), checkpoint(runs / "tuned", 4)
    assert tuned.parameters.keys() - base.parameters.keys() == {SOFT_PROMPT_NAME}
    for name in base.parameters:
        assert torch.equal(base.read_logical(name), tuned.read_logical(name)), name
    words = base.read_logical("0.word_embeddings.weight")[[97, 98, 99, 97]]  # "abca"
    prompt = tuned.read_logical(SOFT_PROMPT_NAME)
    assert prompt.shape == (4, 32)
    assert 0 < (prompt - words).abs().max() < 0.1  # four steps of at most 0.01 and decay
    assert tuned.read_logical(SOFT_PROMPT_NAME, "exp_avg_sq").min() > 0


def test_a_continued_run_takes_the_same_steps(runs):
    whole, resumed = (checkpoint(runs / name, 4) for name in ("tuned", "resumed"))
    for kind in ("fp32", "exp_avg", "exp_avg_sq"):
        assert torch.equal(
            whole.read_logical(SOFT_PROMPT_NAME, kind), resumed.read_logical(SOFT_PROMPT_NAME, kind)
        )


def test_the_frozen_weights_of_half_precision_are_those_it_computes_with(runs):
    base, tuned = checkpoint(runs / "base", 2), checkpoint(runs / "bf16", 2)
    for name in base.parameters:
        rounded = base.read_logical(name).bfloat16().float()
        assert torch.equal(rounded, tuned.read_logical(name)), name


def test_evaluation_and_generation_use_the_prompt_on_each_layout(corpus, runs, tmp_path):
    keys = {"max_position_embeddings": 20}
    without = read_run(corpus, tmp_path / "base", load=runs / "base/run", **keys)
    keys["soft_prompt_tuning"] = TUNING
    one = read_run(corpus, tmp_path / "one", load=runs / "strong/run", **keys)
    losses = [_losses(values[0]) for values, _ in (without, one)]
    assert losses[0].keys() == losses[1].keys()
    # trained on these three domains with the model frozen: the prompt alone lowers the losses
    assert sum(losses[1].values()) < sum(losses[0].values()) - 0.005 * len(losses[0])
    for name, cut in {"tp2": "model_parallel_size", "pp2": "pipe_parallel_size"}.items():
        values, texts = read_run(
            corpus, tmp_path / name, load=runs / "strong/run", **keys, **{cut: 2}
        )
        for value in values:
            assert _losses(value) == pytest.approx(losses[1], rel=1e-5)
        assert texts == one[1]


def _losses(report: dict[str, Any]) -> dict[str, float]:
    return {domain: result["loss"] for domain, result in report["validation"].items()}


@pytest.mark.slow
def test_two_processes_train_the_prompt_of_one(corpus, runs, tmp_path):
    cuts = {name: tuning(runs, **cut, **MORE.get(name, {})) for name, cut in CUTS.items()}
    train_all(corpus, tmp_path, 2, cuts)
    want = train_events(runs / "tuned/run.yml")
    for name in CUTS:
        got = train_events(tmp_path / name / "run.yml")
        for step, expected in want.items():
            assert got[step]["lm_loss"] == pytest.approx(expected["lm_loss"], rel=1e-4), name
            assert got[step]["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3), name
        torch.testing.assert_close(
            checkpoint(tmp_path / name, 4).read_logical(SOFT_PROMPT_NAME),
            checkpoint(runs / "tuned", 4).read_logical(SOFT_PROMPT_NAME),
            rtol=1e-3,
            atol=2e-5,
            msg=name,
        )
    events = read_run_log(tmp_path / "dp2-zero3/run")
    norms = [e for e in events if e["event"] == "statistics"][-1]["parameter_norms"]
    reader = checkpoint(runs / "base", 2)
    for parameter in reader.parameters:
        expected = reader.read_logical(parameter).norm().item()
        assert norms[parameter] == pytest.approx(expected, rel=1e-5), parameter
