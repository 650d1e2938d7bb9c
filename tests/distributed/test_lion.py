"""Lion trains, on several layouts alike, and continues from a checkpoint to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron.checkpoint.format import CheckpointReader
from tests.distributed.many_runs import train_all
from tests.distributed.runs import train_events
from tests.tiny import write_tiny_corpus

pytestmark = pytest.mark.distributed

LION: dict[str, Any] = {
    "optimizer": {"type": "Lion", "params": {"lr": 0.002}},
    "train_iters": 6,
    "checkpoint_factor": 3,
}


def test_lion_lowers_the_loss_and_continues(tmp_path):
    corpus = write_tiny_corpus(tmp_path / "corpus")
    again = {"load": str(tmp_path / "zero1/run"), "iteration": 3}
    stage = {"zero_optimization": {"stage": 1}}
    runs = {"zero0": LION, "zero1": {**LION, **stage}, "again": {**LION, **stage, **again}}
    train_all(corpus, tmp_path, 1, runs)
    losses = {name: train_events(tmp_path / name / "run.yml") for name in ("zero0", "zero1")}
    for step, event in losses["zero0"].items():
        assert losses["zero1"][step]["lm_loss"] == pytest.approx(event["lm_loss"], rel=1e-4)
    assert losses["zero0"][6]["lm_loss"] < losses["zero0"][1]["lm_loss"] - 0.1
    one, other = (CheckpointReader(tmp_path / n / "run/global_step6") for n in ("zero1", "again"))
    assert one.moment_names == ("exp_avg",)
    for name in one.parameters:
        for kind in ("fp32", "exp_avg"):
            assert torch.equal(one.read_logical(name, kind), other.read_logical(name, kind)), name
