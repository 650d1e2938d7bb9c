"""Limits on the weights in a run."""

from __future__ import annotations

import json

import pytest

from tests.distributed.runs import output_of, start, train, train_events, write_config
from tests.tiny import DOMAINS, write_tiny_corpus

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_tiny_corpus(tmp_path_factory.mktemp("corpus"))


def test_weights_and_epochs_stay_within_the_limits(corpus, tmp_path):
    config = write_config(
        corpus,
        tmp_path,
        train_iters=60,
        mixed_minibatches=False,
        mixed_batches=True,
        data_sampling_stratified=True,
        data_sampling_min_weight={"digits": 0.3},
        data_sampling_max_weight={"letters": 0.45},
        data_sampling_max_epochs={"noise": 0.5},
    )
    train(config)
    events = list(train_events(config).values())
    assert len(events) == 60
    weights = {name: [event["weights"][name] for event in events] for name in DOMAINS}
    assert min(weights["digits"]) >= 0.3 - 1e-9
    assert max(weights["letters"]) <= 0.45 + 1e-9
    # its loss is the highest: it is read as often as it may be
    assert events[-1]["epochs"]["noise"] == pytest.approx(0.5, abs=0.02)


def test_a_guarded_run_that_follows_noise_ends_with_the_counts_of_its_anchor(corpus, tmp_path):
    """It is resumed in the middle; noise has the highest perplexity and is never learnt."""
    changes = {"train_iters": 60, "mixed_minibatches": False, "mixed_batches": True}
    changes |= {"train_data_weights": [1, 2, 1], "data_sampling_guard": "anchor"}
    config = write_config(corpus, tmp_path, **changes, exit_interval=30)
    train(config)
    config = write_config(corpus, tmp_path, **changes)
    train(config)
    state = json.loads((tmp_path / "run" / "global_step60" / "mixture.json").read_text())
    assert state["guard"]["phase"] == "restoring"
    assert state["cursors"] == [120, 240, 120]  # of 60 iterations of 8 samples


def test_too_little_data_for_the_limit_ends_the_run_with_one_line(corpus, tmp_path):
    config = write_config(corpus, tmp_path, train_iters=5000, data_sampling_max_epochs=1)
    assert start(config).wait(120) == 2
    (line,) = output_of(config).splitlines()  # before a rank is started
    assert "data_sampling_max_epochs: " in line
    assert "the run draws 40000" in line
