"""Windows, relative biases and packed documents: the layout changes neither losses nor weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron.checkpoint.format import CheckpointReader
from megatron.reporting.run_log import read_run_log
from tests.distributed.many_runs import train_all
from tests.distributed.runs import train_events
from tests.distributed.test_layouts import SGD, assert_same_curve
from tests.tiny import write_tiny_corpus

pytestmark = pytest.mark.distributed

EOD = 0
SAVED_AT, LAST = 10, 20
PACKED = {"reset_attention_mask": True, "reset_position_ids": True}
ATTENTION: dict[str, dict[str, Any]] = {
    "window-packed": {**SGD, **PACKED, "sliding_window_width": 3, "num_kv_heads": 2},
    "alibi-packed": {**SGD, **PACKED, "pos_emb": "alibi"},
    "rpe-packed": {
        **{**SGD, **PACKED, "pos_emb": "rpe", "rpe_num_buckets": 8, "rpe_max_distance": 12},
        **{"attention_config": [[["local", "flash"], "all"]], "sparsity_config": {"block": 4}},
        "no_weight_tying": False,
    },
    "learned-packed": {**SGD, **PACKED, "pos_emb": "learned", "gpt_j_residual": False},
}
TP, PP = {"model_parallel_size": 2}, {"pipe_parallel_size": 2}
CUTS: dict[str, dict[str, Any]] = {
    "dp2-zero1": {"zero_optimization": {"stage": 1}},
    "dp2-zero3": {"zero_optimization": {"stage": 3}, "checkpoint_activations": True},
    "tp2-sp": {**TP, "sequence_parallel": True},
    "pp2": PP,
    "pp2-recompute": {**PP, "checkpoint_activations": True},
}


def write_corpus_of_short_documents(folder: Path) -> dict[str, list[str]]:
    """The tiny corpus with an end of a document at every twelfth token or so."""
    corpus = write_tiny_corpus(folder)
    generator = np.random.default_rng(6)
    for prefix in (prefix for prefixes in corpus.values() for prefix in prefixes):
        tokens = np.memmap(f"{prefix}.bin", dtype=np.uint16, mode="r+")
        tokens[generator.random(len(tokens)) < 1 / 12] = EOD
        tokens.flush()
    return corpus


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("attention")
    corpus = write_corpus_of_short_documents(folder / "corpus")
    length = {"train_iters": LAST}
    singles = {
        f"{model}/single": {**keys, **length, "extra_save_iters": [SAVED_AT]}
        for model, keys in ATTENTION.items()
    }
    unpacked = {**SGD, "train_iters": 1}
    train_all(corpus, folder, 1, {**singles, "unpacked": unpacked})
    cut = {
        f"{model}/{name}": {**keys, **cut, **length}
        for model, keys in ATTENTION.items()
        for name, cut in CUTS.items()
    }
    moved = {
        f"{model}/loaded-{name}": {
            **{**keys, **cut, **length, "iteration": SAVED_AT},
            "load": str(folder / model / "single/run"),
        }
        for model, keys in ATTENTION.items()
        for name, cut in (("tp2", TP), ("pp2", PP))
    }
    train_all(corpus, folder, 2, {**cut, **moved})
    return folder


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("model", ATTENTION)
def test_two_processes_compute_what_one_computes(runs, model, cut):
    assert_same_curve(runs / model / cut, runs / model / "single")


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("model", ATTENTION)
def test_the_final_weights_are_those_of_one_process(runs, model, cut):
    got, want = (
        CheckpointReader(runs / model / name / f"run/global_step{LAST}") for name in (cut, "single")
    )
    assert got.parameters.keys() == want.parameters.keys()
    for name in want.parameters:
        torch.testing.assert_close(
            got.read_logical(name), want.read_logical(name), rtol=1e-3, atol=1e-4, msg=name
        )


@pytest.mark.parametrize("target", ["tp2", "pp2"])
@pytest.mark.parametrize("model", ATTENTION)
def test_a_checkpoint_continues_on_another_layout(runs, model, target):
    got = train_events(runs / model / f"loaded-{target}" / "run.yml")
    want = train_events(runs / model / "single" / "run.yml")
    assert got.keys() == set(range(SAVED_AT + 1, LAST + 1))
    for step, event in got.items():
        assert event["lm_loss"] == pytest.approx(want[step]["lm_loss"], rel=1e-4), step


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("model", ATTENTION)
def test_validation_losses_are_those_of_one_process(runs, model, cut):
    def validation(name: str) -> dict[str, float]:
        events = read_run_log(runs / model / name / "run")
        (event,) = [e for e in events if e["event"] == "validation"]
        return {domain: result["loss"] for domain, result in event["domains"].items()}

    assert validation(cut) == pytest.approx(validation("single"), rel=1e-4)


@pytest.mark.parametrize("model", ATTENTION)
def test_training_lowers_the_loss(runs, model):
    losses = [e["lm_loss"] for e in train_events(runs / model / "single/run.yml").values()]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_the_keys_change_the_first_loss(runs):
    first = {
        model: train_events(runs / model / "run.yml")[1]["lm_loss"]
        for model in ("window-packed/single", "alibi-packed/single", "unpacked")
    }
    assert len({round(loss, 5) for loss in first.values()}) == 3
