"""A run whose disk is lost continues from the copy of its checkpoints, as if nothing happened."""

from __future__ import annotations

import shutil

import pytest

from megatron.checkpoint.format import checkpoint_steps
from tests.distributed.runs import assert_same_state, output_of, train, write_config
from tests.tiny import write_tiny_corpus

pytestmark = pytest.mark.distributed


def test_a_run_continues_on_another_machine_from_the_copies(tmp_path):
    corpus = write_tiny_corpus(tmp_path / "corpus")
    address = f"file://{tmp_path}/bucket/run"
    keys = {"processes": 2, "checkpoint_factor": 2, "lr_decay_iters": 8}
    here = {"save_copy": address, "load": address, "keep_last_n_checkpoints": 1}
    config = write_config(corpus, tmp_path / "copied", train_iters=4, **keys, **here)
    train(config)
    bucket, save = tmp_path / "bucket/run", tmp_path / "copied/run"
    assert checkpoint_steps(bucket) == [2, 4]  # what is deleted here stays there
    assert (bucket / "latest").read_text() == "global_step4"
    assert f"copied global_step4 to {address}" in output_of(config)

    shutil.rmtree(save)
    train(write_config(corpus, tmp_path / "copied", train_iters=6, **keys, **here))
    assert f"load: copying global_step4 from {address} to {save}" in output_of(config)
    train(write_config(corpus, tmp_path / "whole", train_iters=6, **keys))
    whole = tmp_path / "whole/run/global_step6"
    assert_same_state(save / "global_step6", whole)
    assert_same_state(bucket / "global_step6", whole)
