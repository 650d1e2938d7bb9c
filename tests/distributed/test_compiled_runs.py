"""Whole runs with ``torch_compile: true``, on one process and on pipeline stages."""

from __future__ import annotations

from typing import Any

import pytest

from megatron.model.compiling import compiler_problem
from tests.distributed.many_runs import train_all
from tests.distributed.runs import train_events
from tests.tiny import write_tiny_corpus

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.skipif(compiler_problem("cpu") is not None, reason=str(compiler_problem("cpu"))),
]

RUNS: dict[str, tuple[int, dict[str, Any]]] = {
    "zero0": (1, {"eod_mask_loss": True}),
    "zero1-recompute": (
        1,
        {"zero_optimization": {"stage": 1}, "checkpoint_activations": True, "norm": "rmsnorm"},
    ),
    "pp2-tied": (
        2,
        {"pipe_parallel_size": 2, "checkpoint_activations": True, "no_weight_tying": False},
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_losses_of_a_compiled_run_are_those_of_the_same_run(name, tmp_path):
    corpus = write_tiny_corpus(tmp_path / "corpus")
    ranks, keys = RUNS[name]
    keys = {**keys, "train_iters": 3}
    kinds = {"eager": False, "compiled": True}
    runs = {kind: {**keys, "torch_compile": wanted} for kind, wanted in kinds.items()}
    train_all(corpus, tmp_path, ranks, runs, timeout_s=1800)
    eager, compiled = (train_events(tmp_path / kind / "run.yml") for kind in kinds)
    assert eager.keys() == compiled.keys() == {1, 2, 3}
    for step, event in eager.items():
        assert compiled[step]["lm_loss"] == pytest.approx(event["lm_loss"], rel=1e-4)
        assert compiled[step]["grad_norm"] == pytest.approx(event["grad_norm"], rel=1e-3)
