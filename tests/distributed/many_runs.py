"""Several training runs one after the other in the same processes: starting them costs most."""

from __future__ import annotations

import json
import math
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
    uses_onednn: bool = False,
) -> None:
    """Trains each configuration in ``runs`` with ``world_size`` processes, in ``folder/<name>``.

    ``uses_onednn``: all linear layers do, as large ones would; else these tiny ones do not.
    """
    files = []
    for name, changes in runs.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        config = tiny_config(paths, folder / name, global_num_gpus=world_size, **changes)
        files.append(folder / name / "run.yml")
        files[-1].write_text(json.dumps(config))
    run_ranks(
        "tests.distributed.many_runs:train_files",
        world_size,
        keywords={"files": [str(file) for file in files], "uses_onednn": uses_onednn},
        environ={"OMP_NUM_THREADS": "1"},
        timeout_s=timeout_s,
    )


def train_files(files: list[str], uses_onednn: bool) -> None:
    """What a rank does."""
    from megatron.model.cpu import matrix_products
    from tools.benchmark import many_runs

    if uses_onednn:
        matrix_products._SMALLEST_LINEAR = 0
        matrix_products._ROWS_FOR_MKL = math.inf
    many_runs.train_all(files)
