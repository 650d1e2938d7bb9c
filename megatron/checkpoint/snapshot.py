"""A rank's part of a checkpoint: copies on the CPU, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron.checkpoint.format import fragment_key, random_state_key
from megatron.checkpoint.fragments import Fragment, iterate_fragments
from megatron.checkpoint.index import index_entry, parameter_info
from megatron.checkpoint.runs import grouped, rank_file
from megatron.checkpoint.tensor_files import write_checked_tensors
from megatron.model.parameters import spec_of
from megatron.mpu import Topology
from megatron.runtime import accelerator

__all__ = [
    "Snapshot",
    "combine_reports",
    "owned_fragments",
    "take_snapshot",
    "write_snapshot",
]


@dataclass(frozen=True)
class Snapshot:
    """Copies of what a rank owns, so that training can continue while they are written."""

    rank: int
    tensors: dict[str, Tensor]
    """Key in the file -> fragment, or random state of this rank."""
    parameters: dict[str, dict[str, Any]]
    """Entries of the index: shape, tp_dim, extent and this rank's fragments, by parameter."""
    moments: tuple[str, ...]
    """Names of the moments among the fragments."""


def owned_fragments(
    engine, topology: Topology, moment_names: tuple[str, ...] = ()
) -> Iterator[Fragment]:
    """Yields what this rank owns, without vocabulary padding; no communication.

    All ranks together yield each element of the logical parameters exactly once: replicated
    parameters belong to one tensor rank, and tied copies to the lowest stage.
    """
    dp_rank, dp_size = topology.data_rank, topology.grid.data
    for fragment in iterate_fragments(engine, moment_names, dp_rank=dp_rank, dp_size=dp_size):
        spec = spec_of(fragment.parameter)
        if not _is_owner(fragment.parameter, topology):
            continue
        tp_rank = 0 if spec.tp_dim is None else topology.model_rank
        info = parameter_info(spec, topology.grid.model)
        # vocabulary padding comes after the known tokens
        known = math.prod(info.shard_shape(tp_rank, topology.grid.model))
        length = min(fragment.length, known - fragment.offset)
        if length > 0:
            values = {kind: tensor[:length] for kind, tensor in fragment.values.items()}
            yield replace(fragment, values=values)


def take_snapshot(
    engine, topology: Topology, *, moment_names: tuple[str, ...], with_random_state: bool
) -> Snapshot:
    """Copies this rank's fragments to the CPU; no communication."""
    name = rank_file(topology.rank)
    tensors: dict[str, Tensor] = {}
    if with_random_state:
        tensors = {random_state_key(k): v for k, v in accelerator.rng_state().items()}
    parameters: dict[str, dict[str, Any]] = {}
    kinds: set[str] = set()
    for fragment in owned_fragments(engine, topology, moment_names):
        spec = spec_of(fragment.parameter)
        tp_rank = 0 if spec.tp_dim is None else topology.model_rank
        info = parameter_info(spec, topology.grid.model)
        entry = parameters.setdefault(fragment.name, index_entry(info))
        entry["fragments"].append((name, tp_rank, fragment.offset, fragment.length))
        kinds.update(fragment.values)
        for kind, values in fragment.values.items():
            key = fragment_key(kind, fragment.name, tp_rank, fragment.offset)
            tensors[key] = values.detach().to("cpu", torch.float32, copy=True)
    return Snapshot(
        rank=topology.rank,
        tensors=tensors,
        parameters=parameters,
        moments=tuple(sorted(kinds - {"fp32"})),
    )


def write_snapshot(snapshot: Snapshot, folder: Path) -> dict[str, Any]:
    """Writes the file of a rank; returns what the index needs, as plain data."""
    name = rank_file(snapshot.rank)
    files = {name: write_checked_tensors(folder / name, snapshot.tensors)}
    return {"files": files, "parameters": snapshot.parameters, "moments": snapshot.moments}


def combine_reports(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """What several ranks report about their files, as if one had written them.

    Args:
        reports: What `write_snapshot` returned, and ``problem``: what went wrong, or None.
    """
    entries: dict[str, dict[str, Any]] = {}
    fragments: dict[str, list[Any]] = {}
    for report in reports:
        for name, entry in report.get("parameters", {}).items():
            entries.setdefault(name, entry)
            fragments.setdefault(name, []).extend(entry["fragments"])
    return {
        "problem": next((r["problem"] for r in reports if r["problem"]), None),
        "files": {name: facts for r in reports for name, facts in r.get("files", {}).items()},
        "moments": sorted({kind for r in reports for kind in r.get("moments", ())}),
        "parameters": {
            name: {**entry, "fragments": grouped(fragments[name])}
            for name, entry in entries.items()
        },
    }


def _is_owner(parameter: Any, topology: Topology) -> bool:
    """Replicated parameters are written by one tensor rank, tied copies by the lowest stage."""
    if getattr(parameter, "ds_pipe_replicated", False):
        return False
    return spec_of(parameter).tp_dim is not None or topology.model_rank == 0
