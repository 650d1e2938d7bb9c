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
PACKED = {"reset_attention_mask": True, "reset_position_ids": True}
ATTENTION: dict[str, dict[str, Any]] = {
    "window-packed": {**SGD, **PACKED, "sliding_window_width": 3, "num_kv_heads": 2},
    "rpe-packed": {
        **{**SGD, **PACKED, "pos_emb": "rpe", "rpe_num_buckets": 8, "rpe_max_distance": 12},
        **{"attention_config": [[["local", "flash"], "all"]], "sparsity_config": {"block": 4}},
        "no_weight_tying": False,
        # with tied weights, steps as large as those of the others make the loss jump to 20 after
        # ten iterations, and then layouts differ by what rounding becomes
        "optimizer": {"type": "SGD", "params": {"lr": 0.1, "momentum": 0.9}},
    },
    "alibi-packed": {**SGD, **PACKED, "pos_emb": "alibi"},
    "learned-packed": {**SGD, **PACKED, "pos_emb": "learned", "gpt_j_residual": False},
}
TP, PP = {"model_parallel_size": 2}, {"pipe_parallel_size": 2}
TWO: dict[str, dict[str, Any]] = {
    "tp2-sp": {**TP, "sequence_parallel": True},
    "pp2-recompute": {**PP, "checkpoint_activations": True},
}
FAST = ("window-packed", "rpe-packed")
ALIBI: dict[str, Any] = {**SGD, "pos_emb": "alibi"}
SAVED_AT, LAST = 3, 6


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
    """Runs on one process and on two, and what loads the checkpoints of the first."""
    folder = tmp_path_factory.mktemp("attention")
    corpus = write_corpus_of_short_documents(folder / "corpus")
    models = {model: {**ATTENTION[model], "train_iters": LAST} for model in FAST}
    single = {f"{m}/single": {**keys, "extra_save_iters": [SAVED_AT]} for m, keys in models.items()}
    unpacked = {**SGD, "train_iters": 1}
    train_all(corpus, folder, 1, {**single, "unpacked": unpacked}, timeout_s=600)
    cut, moved = {}, {}
    for model, keys in models.items():
        for name, layout in TWO.items():
            saved = _from(folder / model / "single")
            cut[f"{model}/{name}"] = {**keys, **layout}
            moved[f"{model}/{name}-loaded"] = {**keys, **layout, **saved}
    train_all(corpus, folder, 2, {**cut, **moved}, timeout_s=600)
    return folder


@pytest.fixture(scope="module")
def alibi(tmp_path_factory) -> Path:
    """ALiBi alone: one process to two and two to one, each from the other's checkpoint."""
    folder = tmp_path_factory.mktemp("alibi")
    corpus = write_tiny_corpus(folder / "corpus")
    keys = {**ALIBI, "train_iters": LAST, "extra_save_iters": [SAVED_AT]}
    without = {**keys, "pos_emb": "none", "train_iters": 1}
    train_all(corpus, folder, 1, {"single": keys, "without": without}, timeout_s=600)
    two, one = {}, {}
    for name, layout in {"tp2": TP, "pp2": PP}.items():
        two[name] = {**keys, **layout}
        two[f"{name}-from-single"] = {**keys, **layout, **_from(folder / "single")}
        one[f"single-from-{name}"] = {**keys, **_from(folder / name)}
    train_all(corpus, folder, 2, two, timeout_s=600)
    train_all(corpus, folder, 1, one, timeout_s=600)
    return folder


def _from(folder: Path) -> dict[str, Any]:
    return {"load": str(folder / "run"), "iteration": SAVED_AT}


def assert_same_weights(folder: Path, reference: Path, step: int) -> None:
    got, want = (CheckpointReader(f / f"run/global_step{step}") for f in (folder, reference))
    assert got.parameters.keys() == want.parameters.keys()
    for name in want.parameters:
        torch.testing.assert_close(
            got.read_logical(name), want.read_logical(name), rtol=1e-3, atol=1e-4, msg=name
        )


def validation(folder: Path) -> dict[str, float]:
    (event,) = [e for e in read_run_log(folder / "run") if e["event"] == "validation"]
    return {domain: result["loss"] for domain, result in event["domains"].items()}


@pytest.mark.parametrize("cut", TWO)
@pytest.mark.parametrize("model", FAST)
def test_two_processes_compute_what_one_computes(runs, model, cut):
    one, two = runs / model / "single", runs / model / cut
    assert_same_curve(two, one)
    assert_same_weights(two, one, LAST)
    assert validation(two) == pytest.approx(validation(one), rel=1e-4)


@pytest.mark.parametrize("cut", TWO)
@pytest.mark.parametrize("model", FAST)
def test_a_checkpoint_continues_on_another_layout(runs, model, cut):
    assert_continues(runs / model / f"{cut}-loaded", runs / model / "single")


def assert_continues(folder: Path, reference: Path) -> None:
    got, want = (train_events(f / "run.yml") for f in (folder, reference))
    assert got.keys() == set(range(SAVED_AT + 1, LAST + 1))
    for step, event in got.items():
        assert event["lm_loss"] == pytest.approx(want[step]["lm_loss"], rel=1e-4), step


def test_the_keys_change_the_first_loss(runs):
    names = ("window-packed/single", "rpe-packed/single", "unpacked")
    first = [train_events(runs / name / "run.yml")[1]["lm_loss"] for name in names]
    assert len({round(loss, 5) for loss in first}) == 3


@pytest.mark.parametrize("cut", ["tp2", "pp2"])
def test_alibi_alone_continues_on_two_processes_and_back_on_one(alibi, cut):
    assert_same_curve(alibi / cut, alibi / "single")
    for moved in (f"{cut}-from-single", f"single-from-{cut}"):
        assert_continues(alibi / moved, alibi / "single")
        assert_same_weights(alibi / moved, alibi / "single", LAST)


def test_alibi_alone_changes_the_first_loss(alibi):
    one, other = (train_events(alibi / name / "run.yml")[1] for name in ("single", "without"))
    assert abs(one["lm_loss"] - other["lm_loss"]) > 1e-5
