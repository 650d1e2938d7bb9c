"""Reads all configuration files in folders: which load, load with notes, or are refused.

``python -m tools.benchmark.configuration_files FOLDER...`` prints one line per file and the counts.
A file that describes a part of a run (a data set, a GPU) is completed by the smallest network.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.neox_arguments import ConfigError, NeoXArgs, deepspeed_config, resolve
from megatron.neox_arguments.schema import SUFFIXES, read_files

__all__ = ["Reading", "completed", "configuration_files", "main", "read_configuration"]

_SMALLEST = {
    "num_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "train_iters": 10,
}
_BATCH = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


@dataclass(frozen=True)
class Reading:
    """The result for a file: why it was refused, or its notes."""

    path: Path
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def outcome(self) -> str:
        """`refused`, `loads with notes` or `loads`."""
        return "refused" if self.problems else "loads with notes" if self.notes else "loads"


def configuration_files(folder: Path) -> list[Path]:
    """Lists the YAML and JSON files below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES)


def completed(written: Mapping[str, Any]) -> dict[str, Any]:
    """The smallest network and run, as far as a file does not describe them."""
    lacks_length = not written.get("train_epochs")
    return {
        key: value
        for key, value in _SMALLEST.items()
        if key not in written and (key != "train_iters" or lacks_length)
    }


def read_configuration(path: Path, *beside: Path, script: str | None = None) -> Reading:
    """Resolves a file, together with others if they are given, as far as possible.

    Args:
        path: The file.
        beside: More files of the same run.
        script: The program that it is for, such as ``evaluate.py``; None resolves a training
            run without its data.
    """
    try:
        written = dict(read_files([path, *beside]).values)
        missing = completed(written)
        if not any(key in written for key in ("train_batch_size", "batch_size", _BATCH[1])):
            missing["train_micro_batch_size_per_gpu"] = 1
        if not any(key in written for key in ("checkpoint_factor", "save_interval")):
            missing["checkpoint_factor"] = 10
        weights = written.get("train_data_weights") or ()
        if not any(f"{name}_data_paths" in written for name in ("train", "valid", "test")):
            # a file of weights belongs to a file of as many data sets
            for name in ("train", "valid", "test") if weights else ():
                missing[f"{name}_data_paths"] = [f"{k}/text" for k in range(len(weights))]
        if script is not None:
            missing["user_script"] = script
        args = NeoXArgs.from_ymls([path, *beside], overwrite_values=missing)
        config = resolve(args, world_size=_world_size(written))
        deepspeed_config(config)
    except ConfigError as error:
        return Reading(path, problems=error.messages)
    return Reading(path, notes=config.notes)


def _world_size(written: dict[str, Any]) -> int:
    """The smallest number of processes that fits the batch and the degrees of parallelism."""
    parts = max(written.get("model_parallel_size") or 1, 1)
    parts *= max(written.get("pipe_parallel_size") or 1, 1)
    train, micro, steps = (written.get(key) for key in _BATCH)
    return parts * max((train or 1) // ((micro or 1) * (steps or 1)), 1) if micro else parts


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one line per file and the counts; returns 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    for folder in parser.parse_args(argv).folders:
        readings = [read_configuration(path) for path in configuration_files(folder)]
        for reading in readings:
            print(f"{reading.outcome}: {reading.path.relative_to(folder)}")
            for line in (*reading.problems, *(f"note: {note}" for note in reading.notes)):
                print(f"    {line}")
        counts = Counter(reading.outcome for reading in readings)
        print(f"{folder}: {len(readings)} files, {dict(sorted(counts.items()))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
