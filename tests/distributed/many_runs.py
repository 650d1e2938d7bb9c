"""Several training runs one after the other in the same processes: starting them costs most."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.distributed.spawn import run_ranks
from tests.tiny import tiny_config


def train_all(
    paths: dict[str, list[str]],
    folder: Path,
    world_size: int,
    runs: dict[str, dict[str, Any]],
    *,
    timeout_s: float = 240.0,
) -> None:
    """Trains each configuration in ``runs`` with ``world_size`` processes, in ``folder/<name>``."""
    files = []
    for name, changes in runs.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        config = tiny_config(paths, folder / name, global_num_gpus=world_size, **changes)
        files.append(folder / name / "run.yml")
        files[-1].write_text(json.dumps(config))
    run_ranks(
        "tools.benchmark.many_runs:train_all",
        world_size,
        keywords={"files": [str(file) for file in files]},
        environ={"OMP_NUM_THREADS": "1"},
        timeout_s=timeout_s,
    )
