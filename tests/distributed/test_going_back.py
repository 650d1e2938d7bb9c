"""Runs that are started again: finished ones, from an earlier iteration, and after a divergence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from megatron.checkpoint.format import checkpoint_steps, logical_tensors
from tests.distributed.runs import output_of, start, train, train_events, write_config
from tests.tiny import write_tiny_corpus

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> dict[str, list[str]]:
    return write_tiny_corpus(tmp_path_factory.mktemp("corpus"))


def test_a_run_that_goes_back_continues_from_there_and_a_finished_one_writes_nothing(
    corpus, tmp_path
):
    save = tmp_path / "run"

    def run(**changes) -> None:
        train(write_config(corpus, tmp_path, checkpoint_factor=1, lr_decay_iters=8, **changes))

    run(train_iters=4)
    written = os.stat(save / "global_step4/index.json")
    run(train_iters=4)
    assert os.stat(save / "global_step4/index.json").st_mtime_ns == written.st_mtime_ns
    run(train_iters=3, iteration=2, keep_last_n_checkpoints=1)
    assert checkpoint_steps(save) == [3, 4]
    run(train_iters=5, train_batch_size=16)
    config = tmp_path / "run.yml"
    assert f"loading {save}/global_step3" in output_of(config)
    events = train_events(config)
    assert sorted(events) == [1, 2, 3, 4, 5]
    assert events[5]["consumed_samples"] == 3 * 8 + 2 * 16


def test_a_run_that_diverges_says_so_and_saves_none_of_it(corpus, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "run", target_is_directory=True)
    config = write_config(
        corpus,
        tmp_path,
        optimizer={"type": "Adam", "params": {"lr": 1e30}},
        checkpoint_factor=1,
        load=str(tmp_path / "link"),  # the save folder by another name: a fresh start
    )
    process = start(config)
    try:
        code = process.wait(120)
    finally:
        process.kill()
        process.wait()
    output = output_of(config)
    assert code == 1, output
    assert "starting from scratch" in output
    assert "warning: iteration 2: the loss is" in output
    assert checkpoint_steps(tmp_path / "run") == [1]
    for name, tensor in logical_tensors(Path(tmp_path / "run/global_step1")):
        assert tensor.isfinite().all(), name


def test_a_run_that_goes_on_with_other_data_is_told_once(corpus, tmp_path):
    other = write_tiny_corpus(tmp_path / "other", documents=30)
    for iterations, paths, told in ((2, corpus, 0), (3, other, 1), (4, other, 1)):
        config = write_config(paths, tmp_path, train_iters=iterations)
        train(config)
        assert output_of(config).count("warning: the data changed since") == told
    assert "domain letters has" in output_of(config)
    assert "(3 of 3 domains changed)" in output_of(config)
