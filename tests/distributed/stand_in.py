"""Starts the stand-in for a training script under ``deepy.py``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests import signals

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = Path(__file__).with_name("stand_in_run.py")
CONFIG = {
    "num_layers": 1,
    "hidden_size": 8,
    "num_attention_heads": 1,
    "seq_length": 8,
    "max_position_embeddings": 8,
    "train_micro_batch_size_per_gpu": 1,
    "train_iters": 1,
    "checkpoint_factor": 10,
    "optimizer": {"type": "Adam", "params": {"lr": 0.001}},
}


class StandInRun:
    """A run of two ranks.

    Args:
        folder: Gets configuration, output, errors, and what the ranks write.
        options: Words of the command line before the script.
        config: More keys of the configuration.
        variables: More variables of the environment.
    """

    def __init__(
        self,
        folder: Path,
        *,
        options: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
        variables: Mapping[str, str],
    ) -> None:
        self.folder = folder
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        path = folder / "run.yml"
        path.write_text(json.dumps({**CONFIG, "save": str(folder), **(config or {})}))
        environ = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(self.temporary),
            **variables,
        }
        self.errors = folder / "stderr"
        with open(self.errors, "wb") as errors, open(folder / "stdout", "wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "deepy.py"), *options, str(STAND_IN), str(path)],
                env=environ,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                start_new_session=True,
                preexec_fn=signals.take_defaults,
            )

    def rank_pids(self) -> list[int]:
        """Waits until both ranks run and returns their process ids."""
        files = [self.folder / f"pid_{rank}" for rank in range(2)]
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if all(file.is_file() and file.read_text() for file in files):
                return [int(file.read_text()) for file in files]
            assert self.process.poll() is None, self.errors.read_text()
            time.sleep(0.02)
        raise AssertionError(f"the ranks did not start: {self.errors.read_text()}")
