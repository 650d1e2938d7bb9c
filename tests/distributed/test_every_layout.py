"""Layouts of four processes and half precision, and a checkpoint of each layout on every other.

Losses, weights of the mixture and held-out losses are the same on all of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.cuts import CUTS
from tests.distributed.many_runs import train_all
from tests.distributed.runs import assert_same_state, train_events
from tests.distributed.test_attention_layouts import (
    ATTENTION,
    assert_same_weights,
    validation,
    write_corpus_of_short_documents,
)
from tests.distributed.test_held_out import measurements
from tests.distributed.test_layouts import LLAMA, SGD, assert_same_curve
from tests.tiny import write_tiny_corpus

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

SAVED_AT, LAST = 5, 10
TP, PP = {"model_parallel_size": 2}, {"pipe_parallel_size": 2}
BF16 = {"precision": "bfloat16"}
HELD_OUT = {
    "data_sampling_method": "learning_curve",
    "data_sampling_reward": "heldout",
    "data_sampling_heldout_interval": 1,
    "data_sampling_heldout_samples": 4,
    "data_sampling_heldout_parts": 2,
}
FOLLOWS_SLOPES = {**HELD_OUT, "train_iters": LAST}
"""In ten iterations the curves are long enough for the weights to leave their initial values."""


def zero(stage: int) -> dict[str, Any]:
    return {"zero_optimization": {"stage": stage}}


FOUR: dict[str, dict[str, Any]] = {
    "dp4": {},
    "tp2-pp2": {**TP, **PP},
    "tp2-pp2-sp": {**TP, **PP, "sequence_parallel": True},
    "dp2-pp2": PP,
    "dp2-pp2-zero1": {**PP, **zero(1)},
    "dp2-tp2": TP,
    "dp2-tp2-zero1": {**TP, **zero(1)},
    "dp2-tp2-zero3": {**TP, **zero(3)},
}
LLAMA_CUTS = ("tp2-pp2-sp", "dp2-pp2-zero1", "dp2-tp2-zero3")
HALF: dict[str, dict[str, Any]] = {"dp2-zero2": zero(2), "tp2": {**TP, **zero(1)}, "pp2": PP}
MOVES: dict[str, tuple[int, dict[str, Any]]] = {
    "single": (1, {}),
    "dp2": (2, {}),
    "dp2-zero1": (2, zero(1)),
    "dp2-zero3": (2, zero(3)),
    "tp2": (2, TP),
    "pp2": (2, PP),
    "tp2-pp2": (4, {**TP, **PP, **zero(1)}),
    "bf16-dp2-zero2": (2, {**BF16, **zero(2)}),
}
"""Layout -> number of processes and keys."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> dict[str, list[str]]:
    return write_tiny_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("layouts")
    fp32, bf16 = {**SGD, "train_iters": 5}, {**BF16, "train_iters": 10}
    slopes = {**SGD, **FOLLOWS_SLOPES}
    single = {"fp32/single": fp32, "bf16/single": {**bf16, **zero(1)}, "slopes/single": slopes}
    train_all(corpus, folder, 1, single)
    train_all(corpus, folder, 2, {f"bf16/{name}": {**bf16, **cut} for name, cut in HALF.items()})
    four = {"fp32": fp32, "slopes": slopes}
    runs = {f"{run}/{name}": {**four[run], **cut} for run in four for name, cut in FOUR.items()}
    train_all(corpus, folder, 4, runs)
    llama = {**LLAMA, "train_iters": 20}
    train_all(corpus, folder, 1, {"llama/single": llama})
    train_all(corpus, folder, 4, {f"llama/{name}": {**llama, **FOUR[name]} for name in LLAMA_CUTS})
    return folder


@pytest.mark.parametrize("cut", FOUR)
def test_four_processes_compute_what_one_computes(trained, cut):
    assert_same_curve(trained / "fp32" / cut, trained / "fp32/single")


@pytest.mark.parametrize("cut", FOUR)
def test_four_processes_follow_the_held_out_curves_that_one_follows(trained, cut):
    folder, single = trained / "slopes" / cut, trained / "slopes/single"
    assert max(train_events(single / "run.yml")[LAST]["weights"].values()) > 0.35
    assert_same_curve(folder, single)
    got, want = measurements(folder), measurements(single)
    assert list(got) == list(range(1, LAST + 1))
    for step, expected in want.items():
        assert got[step]["mean_loss"] == pytest.approx(expected["mean_loss"], rel=1e-4)


@pytest.mark.parametrize("cut", LLAMA_CUTS)
def test_a_llama_loses_the_same_on_four_processes_for_twenty_iterations(trained, cut):
    got, want = losses(trained / "llama" / cut), losses(trained / "llama/single")
    assert len(want) == 20
    assert want[20] < want[1]
    assert got == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("cut", HALF)
def test_two_processes_in_half_precision_lose_as_little_as_one(trained, cut):
    got, want = (losses(trained / "bf16" / name) for name in (cut, "single"))
    assert got == pytest.approx(want, rel=2e-2)


def losses(folder: Path) -> dict[int, float]:
    return {step: e["lm_loss"] for step, e in train_events(folder / "run.yml").items()}


@pytest.fixture(scope="module")
def moved(corpus, tmp_path_factory) -> Path:
    """Runs on each layout, and what loads their checkpoints on each other."""
    folder = tmp_path_factory.mktemp("moved")
    for name, (processes, keys) in MOVES.items():
        straight = {**keys, **FOLLOWS_SLOPES, "extra_save_iters": [SAVED_AT]}
        train_all(corpus, folder, processes, {f"{name}/straight": straight})
    for target, (processes, keys) in MOVES.items():
        runs = {
            f"{source}/{target}-{what}": {
                **keys,
                **HELD_OUT,
                "train_iters": last,
                "lr_decay_iters": LAST,
                "load": str(folder / source / "straight/run"),
                "iteration": SAVED_AT,
            }
            for source in MOVES
            for what, last in (("resaved", SAVED_AT), ("continued", LAST))
        }
        train_all(corpus, folder, processes, runs, timeout_s=900)
    return folder


@pytest.mark.parametrize("target", MOVES)
@pytest.mark.parametrize("source", MOVES)
def test_a_checkpoint_keeps_every_bit_and_continues_on_any_layout(moved, source, target):
    saved = moved / source / f"straight/run/global_step{SAVED_AT}"
    resaved = moved / source / f"{target}-resaved/run/global_step{SAVED_AT}"
    assert_same_state(saved, resaved, same_length=False)
    rel = 2e-3 if "bf16" in source + target else 1e-5
    want = train_events(moved / source / "straight/run.yml")
    got = train_events(moved / source / f"{target}-continued/run.yml")
    assert list(got) == list(range(SAVED_AT + 1, LAST + 1))
    for step, event in got.items():
        assert event["lm_loss"] == pytest.approx(want[step]["lm_loss"], rel=rel)
        assert event["weights"] == pytest.approx(want[step]["weights"], rel=rel)
    assert max(want[LAST]["weights"].values()) > 0.35, "the weights moved, by losses of both runs"


LENGTH = 20
PAIRS = ("dp2-zero1", "dp2-zero2", "dp2-zero3", "tp2-sp", "pp2-zero1", "pp2-recompute")


@pytest.fixture(scope="module")
def attention(tmp_path_factory) -> Path:
    """Windows, relative biases and packed documents on layouts of one, two and four processes."""
    folder = tmp_path_factory.mktemp("attention")
    corpus = write_corpus_of_short_documents(folder / "corpus")
    for processes, cuts in ((1, {"single": {}}), (2, {p: CUTS[p] for p in PAIRS}), (4, FOUR)):
        runs = {
            f"{model}/{name}": {**keys, **cut, "train_iters": LENGTH}
            for model, keys in ATTENTION.items()
            for name, cut in cuts.items()
        }
        train_all(corpus, folder, processes, runs, timeout_s=1800)
    return folder


@pytest.mark.parametrize("cut", [*PAIRS, *FOUR])
@pytest.mark.parametrize("model", ATTENTION)
def test_windows_and_documents_are_the_same_on_every_layout(attention, model, cut):
    one, other = attention / model / "single", attention / model / cut
    assert_same_curve(other, one)
    assert_same_weights(other, one, LENGTH)
    assert validation(other) == pytest.approx(validation(one), rel=1e-4)


@pytest.mark.parametrize("model", ATTENTION)
def test_training_with_windows_and_documents_lowers_the_loss(attention, model):
    curve = [*losses(attention / model / "single").values()]
    assert sum(curve[-5:]) < 0.95 * sum(curve[:5])
