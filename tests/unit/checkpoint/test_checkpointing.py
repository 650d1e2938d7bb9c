"""Publishing a checkpoint: what rank 0 adds, and what it leaves as it was."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch

from megatron.checkpoint.format import fragment_key
from megatron.checkpoint.snapshot import Snapshot, write_snapshot
from megatron.checkpoint.verification import verify
from megatron.checkpointing import CheckpointContents, _publish
from megatron.engine.state import TrainState
from megatron.errors import CheckpointError


def test_publishing_adds_the_files_of_rank_0_and_leaves_its_arguments_alone(tmp_path):
    temporary, final = tmp_path / "global_step3.tmp", tmp_path / "global_step3"
    temporary.mkdir()
    snapshot = Snapshot(
        rank=0,
        tensors={fragment_key("fp32", "bias", 0, 0): torch.arange(4.0)},
        parameters={},
        moments=(),
    )
    index: dict[str, Any] = {
        "layout": {"dp": 1, "tp": 1, "pp": 1},
        "moments": [],
        "parameters": {},
        "files": write_snapshot(snapshot, temporary)["files"],
    }
    contents = CheckpointContents(
        state=TrainState(step=3),
        mixture=None,
        config_files={"run.yml": "seed: 1\n"},
        resolved_config={"version": 2, "model": {"num_layers": 1}},
        extra={"loss_scaler": {}},
    )
    given = deepcopy((index, contents))
    _publish(temporary, final, contents, index)
    assert (index, contents) == given
    verify(final)
    assert (tmp_path / "latest").read_text().strip() == "global_step3"
    for name in ("state.json", "mixture.json", "configs/run.yml", "configs/resolved.json"):
        content = (final / name).read_text()
        (final / name).write_text(content + " ")
        with pytest.raises(CheckpointError, match=name):
            verify(final)
        (final / name).write_text(content)
