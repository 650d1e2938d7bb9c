"""Saves and loads checkpoints: one code path for every number of ranks and every ZeRO stage.

Saving: each rank writes the fragments it owns into ``global_step<N>.tmp``; rank 0 adds the index
and renames the folder; ``latest`` is replaced last. Whatever is interrupted leaves the checkpoint
before it in force. Loading: each rank reads what its model needs, from any layout.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from megatron import accelerator
from megatron.checkpoint_format import (
    FORMAT_VERSION,
    CheckpointReader,
    checkpoint_steps,
    fragment_key,
    step_folder,
    verify,
)
from megatron.engine_state import Fragment, iterate_fragments, load_fragments, prepare_moments
from megatron.errors import CheckpointError
from megatron.files import crc32_of_file, fsync_folder, write_json_atomic, write_text_atomic
from megatron.model.parameters import facts_of
from megatron.state import TrainState

__all__ = [
    "CheckpointContents",
    "find_checkpoint",
    "load_engine_state",
    "load_module_weights",
    "load_run_state",
    "restore_random_state",
    "save_checkpoint",
]

Say = Callable[[str], None]


@dataclass
class CheckpointContents:
    """What a checkpoint holds besides weights and moments."""

    state: TrainState
    mixture: dict[str, Any]
    """State of the mixture, plain JSON."""
    config_files: dict[str, str]
    """{basename: text} of the YAML files as given."""
    resolved_config: dict[str, Any]
    extra: dict[str, Any]
    """Scheduler, loss scale and whatever else belongs to ``state.json``; plain JSON."""


def save_checkpoint(
    engine,
    contents: CheckpointContents,
    *,
    save: Path,
    moment_names: tuple[str, ...],
    save_random_state: bool = True,
    keep_last: int | None = None,
    protected_steps: frozenset[int] = frozenset(),
) -> Path:
    """Writes ``<save>/global_step<N>``; all ranks call it together.

    Returns:
        The folder of the checkpoint.

    Raises:
        CheckpointError: On every rank, if any rank could not write; nothing half-written stays and
            the checkpoint before remains in force.
    """
    rank = dist.get_rank()
    final = step_folder(save, contents.state.step)
    temporary = final.with_name(final.name + ".tmp")
    problem = _attempt(lambda: _make_empty_folder(temporary)) if rank == 0 else None
    _raise_if_any(problem, final)
    report: dict[str, Any] = {}

    def write() -> None:
        report.update(
            _write_rank(engine, temporary, moment_names, save_random_state=save_random_state)
        )

    problem = _attempt(write)
    reports: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(reports, {"problem": problem, **report})
    problem = next((r["problem"] for r in reports if r["problem"]), None)
    if problem is None and rank == 0:
        problem = _attempt(
            lambda: _publish(temporary, final, contents, reports, moment_names=moment_names)
        )
    if rank == 0 and problem is not None:
        shutil.rmtree(temporary, ignore_errors=True)
    _raise_if_any(problem, final)
    if rank == 0 and keep_last:
        _prune(save, keep_last, protected_steps)
    return final


def _attempt(action: Callable[[], None]) -> str | None:
    """Runs ``action``; returns what went wrong instead of leaving the other ranks waiting."""
    try:
        action()
    except (OSError, CheckpointError) as error:
        return str(error)
    except Exception as error:  # safetensors reports a full disk as its own exception type
        if type(error).__module__.split(".")[0] != "safetensors":
            raise
        return str(error)
    return None


def _raise_if_any(problem: str | None, folder: Path) -> None:
    problems: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    first = next((text for text in problems if text), None)
    if first:
        raise CheckpointError(
            f"{folder}: could not save: {first}; the checkpoint before it remains in force"
        )


def _make_empty_folder(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def _write_rank(
    engine, folder: Path, moment_names: tuple[str, ...], *, save_random_state: bool
) -> dict[str, Any]:
    """Writes this rank's fragments and random state; returns what the index must know of them."""
    rank = dist.get_rank()
    name = f"rank_{rank:05d}.safetensors"
    parameters = _parameter_facts(engine.module)
    tensors: dict[str, Tensor] = {}
    fragments: dict[str, list[tuple[str, int, int, int]]] = {}
    kinds: set[str] = set()
    for fragment in iterate_fragments(engine, moment_names, dp_rank=rank):
        length = _unpadded_length(fragment, parameters[fragment.name]["shape"])
        if length <= 0:
            continue
        kinds.update(fragment.values)
        fragments.setdefault(fragment.name, []).append((name, 0, fragment.offset, length))
        for kind, values in fragment.values.items():
            key = fragment_key(kind, fragment.name, 0, fragment.offset)
            tensors[key] = values[:length].detach().to("cpu", torch.float32, copy=True)
    files = {name: _save_tensors(folder / name, tensors)}
    if save_random_state:
        random_name = f"rng_{rank:05d}.safetensors"
        files[random_name] = _save_tensors(folder / random_name, accelerator.rng_state())
    return {
        "files": files,
        "fragments": fragments,
        "parameters": parameters,
        "moments": sorted(kinds - {"fp32"}),
    }


def _unpadded_length(fragment: Fragment, logical_shape: tuple[int, ...]) -> int:
    """Cuts vocabulary padding, which lies behind the logical rows."""
    count = 1
    for size in logical_shape:
        count *= size
    return min(fragment.length, count - fragment.offset)


def _parameter_facts(module: nn.Module) -> dict[str, dict[str, Any]]:
    return {
        name: {"shape": facts_of(parameter).logical_shape, "tp_dim": facts_of(parameter).tp_dim}
        for name, parameter in module.named_parameters()
    }


def _save_tensors(path: Path, tensors: dict[str, Tensor]) -> dict[str, int]:
    save_file(tensors, path)
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return {"size": path.stat().st_size, "crc32": crc32_of_file(path)}


def _publish(
    temporary: Path,
    final: Path,
    contents: CheckpointContents,
    reports: list[dict[str, Any]],
    *,
    moment_names: tuple[str, ...],
) -> None:
    """Adds the files of rank 0, renames the folder and points ``latest`` at it."""
    configs = temporary / "configs"
    configs.mkdir()
    for name, text in contents.config_files.items():
        write_text_atomic(configs / name, text)
    write_json_atomic(configs / "resolved.json", contents.resolved_config)
    state = {**contents.extra, "counters": contents.state.state_dict()}
    write_json_atomic(temporary / "state.json", state)
    write_json_atomic(temporary / "mixture.json", contents.mixture)
    write_json_atomic(temporary / "index.json", _index(temporary, reports, moment_names))
    fsync_folder(temporary)
    retired = final.with_name(final.name + ".old.tmp")
    if final.exists():  # a run resumed from an earlier step comes by again
        os.replace(final, retired)
    os.replace(temporary, final)
    fsync_folder(final.parent)
    write_text_atomic(final.parent / "latest", final.name)
    shutil.rmtree(retired, ignore_errors=True)


def _index(
    folder: Path, reports: list[dict[str, Any]], moment_names: tuple[str, ...]
) -> dict[str, Any]:
    parameters: dict[str, dict[str, Any]] = {}
    files: dict[str, dict[str, int]] = {}
    for report in reports:
        files.update(report["files"])
        for name, facts in report["parameters"].items():
            parameters.setdefault(name, {**facts, "fragments": []})
        for name, fragments in report["fragments"].items():
            parameters[name]["fragments"].extend(fragments)
    for name in ("state.json", "mixture.json"):
        path = folder / name
        files[name] = {"size": path.stat().st_size, "crc32": crc32_of_file(path)}
    saved = {kind for report in reports for kind in report["moments"]}
    return {
        "version": FORMAT_VERSION,
        "layout": {"dp": len(reports), "tp": 1, "pp": 1},
        "moments": [name for name in moment_names if name in saved],
        "parameters": parameters,
        "files": files,
    }


def _prune(save: Path, keep_last: int, protected_steps: frozenset[int]) -> None:
    """Deletes all but the newest ``keep_last`` checkpoints; steps asked for by name stay."""
    candidates = [step for step in checkpoint_steps(save) if step not in protected_steps]
    for step in candidates[:-keep_last]:
        doomed = step_folder(save, step)
        # renamed first, so that a crash cannot leave half a checkpoint under a valid name
        retired = doomed.with_name(doomed.name + ".old.tmp")
        os.replace(doomed, retired)
        shutil.rmtree(retired, ignore_errors=True)


def find_checkpoint(load: Path, iteration: int | None, say: Say) -> Path | None:
    """Finds the newest sound checkpoint below ``load``; all ranks call it and get the same answer.

    Args:
        load: Folder that holds ``latest`` and ``global_step<N>`` folders.
        iteration: Step to load; None for what ``latest`` names, or, when that one is damaged, the
            newest sound one before it.
        say: Receives one line for each checkpoint that had to be passed over.

    Returns:
        The folder, or None when there is no checkpoint at all.

    Raises:
        CheckpointError: If ``iteration`` is not there or damaged, or if all are damaged.
    """
    shared: list[Any] = [_candidates(load, iteration) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(shared, src=0)
    names, problem = shared[0]
    if problem:
        raise CheckpointError(problem)
    for name in names:
        problem = _verify_together(load / name)
        if problem is None:
            return load / name
        if iteration is not None:
            raise CheckpointError(problem)
        say(f"passing over a damaged checkpoint: {problem}")
    if names:
        raise CheckpointError(f"{load}: every checkpoint is damaged: {', '.join(names)}")
    return None


def _candidates(load: Path, iteration: int | None) -> tuple[list[str], str | None]:
    steps = checkpoint_steps(load) if load.is_dir() else []
    if iteration is not None:
        if iteration in steps:
            return [step_folder(load, iteration).name], None
        found = ", ".join(map(str, steps)) or "none"
        return [], f"{load}: no checkpoint of iteration {iteration}; found: {found}"
    newest_first = [step_folder(load, step).name for step in reversed(steps)]
    latest = load / "latest"
    if latest.is_file():
        name = latest.read_text(encoding="utf-8").strip()
        if name in newest_first:
            newest_first = newest_first[newest_first.index(name) :]
    return newest_first, None


def _verify_together(folder: Path) -> str | None:
    """Splits the reading over the ranks; returns the first problem that any rank found."""
    problem = _attempt(
        lambda: verify(folder, part=dist.get_rank(), num_parts=dist.get_world_size())
    )
    problems: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    return next((text for text in problems if text), None)


def load_module_weights(module: nn.Module, folder: Path) -> None:
    """Fills a float32 module from a checkpoint, before the engine casts or partitions it.

    Raises:
        CheckpointError: If names or shapes differ from the module's.
    """
    reader = CheckpointReader(folder)
    wanted = dict(module.named_parameters())
    unknown = sorted(reader.parameters.keys() - wanted.keys())
    if unknown:
        raise CheckpointError(
            f"{folder}: holds {unknown[0]!r}, which this model lacks; the configuration differs"
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            logical = reader.read_logical(name)
            expected = facts_of(parameter).logical_shape
            if tuple(logical.shape) != expected:
                raise CheckpointError(
                    f"{folder}: {name} has shape {tuple(logical.shape)}, this model needs "
                    f"{expected}; the configuration differs"
                )
            parameter.zero_()
            parameter[: logical.shape[0]].copy_(logical)


def load_engine_state(
    engine, folder: Path, *, moment_names: tuple[str, ...], applied_steps: int
) -> None:
    """Overwrites master weights, and moments if ``moment_names`` is not empty, of this rank's part.

    The module must have been filled by `load_module_weights` before the engine was made.
    """
    reader = CheckpointReader(folder)
    if moment_names and not reader.moment_names:
        moment_names = ()  # saved before the first step: the optimizer starts as new
    if set(moment_names) - set(reader.moment_names):
        raise CheckpointError(
            f"{folder}: holds the moments {list(reader.moment_names)}, the optimizer needs "
            f"{list(moment_names)}; set no_load_optim to start it anew"
        )
    if moment_names:
        prepare_moments(engine, moment_names, applied_steps)
    counts = {name: info.shape for name, info in reader.parameters.items()}

    def read(name: str, kind: str, offset: int, length: int) -> Tensor:
        logical = 1
        for size in counts[name]:
            logical *= size
        known = max(0, min(length, logical - offset))
        values = torch.zeros(length, dtype=torch.float32)  # vocabulary padding stays zero
        if known:
            values[:known] = reader.read_shard_range(name, kind, 0, offset, known)
        return values

    load_fragments(engine, moment_names, read)


def load_run_state(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the contents of ``state.json`` and ``mixture.json``."""
    state, mixture = (
        json.loads((folder / name).read_text(encoding="utf-8"))
        for name in ("state.json", "mixture.json")
    )
    return state, mixture


def restore_random_state(folder: Path, say: Say) -> None:
    """Restores this rank's random state if the checkpoint was saved by as many ranks."""
    path = folder / f"rng_{dist.get_rank():05d}.safetensors"
    saved_ranks = len(list(folder.glob("rng_*.safetensors")))
    if saved_ranks == dist.get_world_size():
        accelerator.set_rng_state(load_file(path))
    elif saved_ranks:
        say(
            f"{folder}: saved by {saved_ranks} ranks, now {dist.get_world_size()}: dropout masks "
            "will differ from the uninterrupted run"
        )
