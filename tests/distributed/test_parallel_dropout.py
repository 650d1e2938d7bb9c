"""Dropout under tensor parallelism: repeatable, and equal where ranks hold the same tensor."""

from __future__ import annotations

import pytest

from tests.distributed.many_runs import train_all
from tests.distributed.runs import curve, train_events
from tests.tiny import write_tiny_corpus

pytestmark = pytest.mark.distributed

DROPOUT = {"hidden_dropout": 0.2, "attention_dropout": 0.2, "train_iters": 4}
RUNS = {
    "tp": {"model_parallel_size": 2},
    "tp-again": {"model_parallel_size": 2},
    "tp-recompute": {"model_parallel_size": 2, "checkpoint_activations": True},
    "tp-sp": {"model_parallel_size": 2, "sequence_parallel": True},
    "tp-sp-again": {"model_parallel_size": 2, "sequence_parallel": True},
    "pp": {"pipe_parallel_size": 2},
    "pp-again": {"pipe_parallel_size": 2},
    "without": {"hidden_dropout": 0.0, "attention_dropout": 0.0, "model_parallel_size": 2},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dropout")
    corpus = write_tiny_corpus(folder / "corpus")
    train_all(corpus, folder, 2, {name: {**DROPOUT, **changes} for name, changes in RUNS.items()})
    return {name: folder / name / "run.yml" for name in RUNS}


@pytest.mark.parametrize("name", ["tp", "tp-sp", "pp"])
def test_the_same_seed_gives_the_same_losses_twice(runs, name):
    assert curve(runs[name]) == curve(runs[f"{name}-again"])


def test_recomputed_activations_see_the_same_masks(runs):
    """Whether ranks of a group agree shows here too: the recomputation would diverge."""
    got, want = train_events(runs["tp-recompute"]), train_events(runs["tp"])
    for step, event in want.items():
        assert got[step]["lm_loss"] == pytest.approx(event["lm_loss"], rel=1e-5)


def test_dropout_changes_the_losses(runs):
    assert curve(runs["tp"]) != curve(runs["without"])
