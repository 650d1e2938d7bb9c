"""A run whose disk is lost continues from the copy of its checkpoints, as if nothing happened.

`ODM_NEOX_TEST_ADDRESS=s3://bucket/folder` tries it with another store too; the folder keeps what
the test writes, below a name of its own.
"""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

import fsspec
import pytest

from megatron.checkpoint.format import checkpoint_steps
from tests.distributed.runs import assert_same_state, output_of, train, write_config
from tests.tiny import write_tiny_corpus

pytestmark = pytest.mark.distributed

VARIABLE = "ODM_NEOX_TEST_ADDRESS"


@pytest.mark.parametrize("store", ["a folder", "another store"])
def test_a_run_continues_on_another_machine_from_the_copies(store, tmp_path):
    address = f"file://{tmp_path}/bucket/run"
    if store == "another store":
        if VARIABLE not in os.environ:
            pytest.skip(f"{VARIABLE} names no address")
        address = f"{os.environ[VARIABLE].rstrip('/')}/{uuid.uuid4().hex}/run"
    corpus = write_tiny_corpus(tmp_path / "corpus")
    keys = {"processes": 2, "checkpoint_factor": 2, "lr_decay_iters": 8}
    here = {"save_copy": address, "load": address, "keep_last_n_checkpoints": 1}
    config = write_config(corpus, tmp_path / "copied", train_iters=4, **keys, **here)
    train(config)
    assert f"copied global_step4 to {address}" in output_of(config)
    copies, save = fetched(address, tmp_path / "first"), tmp_path / "copied/run"
    assert checkpoint_steps(copies) == [2, 4]  # what is deleted here stays there
    assert (copies / "latest").read_text() == "global_step4"

    shutil.rmtree(save)
    train(write_config(corpus, tmp_path / "copied", train_iters=6, **keys, **here))
    assert f"load: copying global_step4 from {address} to {save}" in output_of(config)
    train(write_config(corpus, tmp_path / "whole", train_iters=6, **keys))
    whole = tmp_path / "whole/run/global_step6"
    assert_same_state(save / "global_step6", whole)
    assert_same_state(fetched(address, tmp_path / "second") / "global_step6", whole)


def fetched(address: str, folder: Path) -> Path:
    """A copy of everything at the address."""
    files, path = fsspec.core.url_to_fs(address)
    files.invalidate_cache()
    files.get(path + "/", f"{folder}/", recursive=True)
    return folder
