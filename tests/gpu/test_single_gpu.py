"""The same runs on a GPU as on a CPU, in the precisions that only a GPU has."""

from __future__ import annotations

import math

import pytest
import torch

from tests.distributed.many_runs import train_all
from tests.distributed.runs import train_events
from tests.tiny import write_tiny_corpus

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine"),
]

RUNS = {
    "fp32": {},
    "bf16": {"precision": "bfloat16"},
    "fp16": {"fp16": {"enabled": True, "loss_scale": 0, "initial_scale_power": 12}},
    "recompute": {"precision": "bfloat16", "checkpoint_activations": True},
    "flash": {"precision": "bfloat16", "attention_config": [[["flash"], "all"]]},
    "zero3": {"precision": "bfloat16", "zero_optimization": {"stage": 3}},
    "compiled": {
        **{"precision": "bfloat16", "torch_compile": True},
        "peak_theoretical_tflops": 1000.0,
    },
}
ALL = {"train_iters": 20, "torch_compile": False}
"""`auto` would compile each of these runs, which takes longer than the runs."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    corpus = write_tiny_corpus(folder / "corpus")
    settings = {name: {**ALL, **changes} for name, changes in RUNS.items()}
    train_all(corpus, folder, 1, settings)
    return {name: train_events(folder / name / "run.yml") for name in RUNS}


@pytest.mark.parametrize("name", RUNS)
def test_losses_fall_as_they_do_in_float32(runs, name):
    got, want = runs[name], runs["fp32"]
    assert all(math.isfinite(event["lm_loss"]) for event in got.values())
    assert got[1]["lm_loss"] == pytest.approx(want[1]["lm_loss"], rel=0.01)
    assert got[20]["lm_loss"] == pytest.approx(want[20]["lm_loss"], rel=0.1)


def test_fp16_reports_its_loss_scale(runs):
    assert all(event["loss_scale"] > 0 for event in runs["fp16"].values())


def test_recomputed_activations_give_the_same_losses(runs):
    for step, event in runs["bf16"].items():
        assert runs["recompute"][step]["lm_loss"] == pytest.approx(event["lm_loss"], rel=1e-3)


def test_a_compiled_run_has_the_losses_of_the_same_run(runs):
    for step, event in runs["bf16"].items():
        assert runs["compiled"][step]["lm_loss"] == pytest.approx(event["lm_loss"], rel=0.02)
        assert runs["compiled"][step]["mfu"] > 0
