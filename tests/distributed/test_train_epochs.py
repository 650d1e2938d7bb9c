"""A run whose length is given in epochs ends at the right iteration, also after a kill."""

from __future__ import annotations

from typing import Any

import pytest

from megatron.data.shares import training_samples
from megatron.reporting.run_log import read_run_log
from tests.distributed.runs import (
    assert_same_state,
    curve,
    kill_at,
    train,
    train_events,
    write_config,
)
from tests.tiny import DOMAINS, write_tiny_corpus

pytestmark = pytest.mark.distributed

EPOCHS, BATCH = 2, 8


def test_epochs_decide_where_a_killed_run_ends(tmp_path):
    corpus = write_tiny_corpus(tmp_path / "corpus", documents=12)
    samples = {
        domain: training_samples(prefix, split=None, seq_length=16)[1]
        for domain, prefix in zip(DOMAINS, corpus["train"], strict=True)
    }
    iterations = EPOCHS * sum(samples.values()) // BATCH
    assert 20 < iterations < 60
    keys: dict[str, Any] = {"train_epochs": EPOCHS, "train_iters": None}
    straight = write_config(corpus, tmp_path / "straight", **keys)
    killed = write_config(corpus, tmp_path / "killed", checkpoint_factor=10, **keys)
    train(straight)
    kill_at(killed, 13)
    train(killed)
    assert [step for step, *_ in curve(straight)] == list(range(1, iterations + 1))
    assert curve(killed) == curve(straight)
    last = f"run/global_step{iterations}"
    assert_same_state(tmp_path / "killed" / last, tmp_path / "straight" / last)
    for config in (straight, killed):
        begun = [e for e in read_run_log(config.parent / "run") if e["event"] == "start"]
        assert begun[0]["samples_per_epoch"] == samples
        assert begun[0]["train_iters"] == iterations
        epochs = train_events(config)[iterations]["epochs"]
        seen = sum(epochs[domain] * samples[domain] for domain in DOMAINS)
        assert seen == pytest.approx(iterations * BATCH, abs=0.01)
