"""Checkpoints in the layout of one process: finds them, writes them completely or not at all."""

from __future__ import annotations

import contextlib
import math
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from megatron.checkpoint.foreign import foreign_checkpoint_problem, is_neox_checkpoint
from megatron.checkpoint.format import (
    ParameterInfo,
    checkpoint_steps,
    fragment_key,
    latest_step,
    random_state_key,
    step_folder,
)
from megatron.checkpoint.index import config_names, index_entry, write_index
from megatron.checkpoint.tensor_files import write_checked_tensors
from megatron.errors import CheckpointError, UserError
from megatron.files import flush_to_disk, replace_folder, write_text_atomic

__all__ = [
    "LAYOUT",
    "all_or_nothing",
    "find_source",
    "groups_by_size",
    "parse_size",
    "step_folder_to_make",
    "write_checkpoint",
]

LAYOUT = {"dp": 1, "tp": 1, "pp": 1}
UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}


def find_source(path: Path, iteration: int | None, *, reads_neox: bool = False) -> Path:
    """Finds the checkpoint that a run folder (its latest, or ``iteration``) or a path names.

    Args:
        path: The folder.
        iteration: Which checkpoint of a run folder.
        reads_neox: Whether the caller can read a checkpoint of GPT-NeoX too.

    Raises:
        CheckpointError: If there is none, or none that the caller can read.
    """
    found = _find_source(path, iteration)
    if not reads_neox and is_neox_checkpoint(found):
        raise CheckpointError(foreign_checkpoint_problem(found))
    return found


def _find_source(path: Path, iteration: int | None) -> Path:
    if (path / "index.json").is_file() or is_neox_checkpoint(path):
        if iteration is not None and path.name != step_folder(path, iteration).name:
            raise CheckpointError(f"{path}: is not iteration {iteration}; leave out --iteration")
        return path.resolve()
    if not path.is_dir():
        what = "is a file, not a folder" if path.is_file() else "there is no such folder"
        raise CheckpointError(f"{path}: {what}; give the save folder of a run")
    steps = checkpoint_steps(path)
    step = iteration
    if step is None:
        # what is beyond ``latest`` is of a run that went back to an earlier iteration
        latest = latest_step(path)
        step = max((s for s in steps if latest is None or s <= latest), default=latest)
    if step not in steps:
        if not steps and (problem := foreign_checkpoint_problem(path)):
            raise CheckpointError(problem)
        found = ", ".join(map(str, steps))
        if steps and iteration is None:
            raise CheckpointError(
                f"{path / 'latest'}: names global_step{step}, which is missing; found: {found}; "
                "choose one with --iteration"
            )
        wanted = "" if iteration is None else f" of iteration {iteration}"
        found = f"found: {found}" if steps else "give the save folder of a run"
        raise CheckpointError(f"{path}: no checkpoint{wanted}; {found}")
    return step_folder(path, step)


def step_folder_to_make(output: Path, default_name: str) -> Path:
    """``output`` itself where it is named global_step<N>, else the folder of that name in it."""
    prefix = "global_step"
    is_step = output.name.startswith(prefix) and output.name[len(prefix) :].isdecimal()
    return output if is_step else output / default_name


def write_checkpoint(
    output: Path,
    default_name: str,
    *,
    parameters: Mapping[str, ParameterInfo],
    read: Callable[[str, str], Tensor],
    moment_names: tuple[str, ...] = (),
    kinds_of: Callable[[str], tuple[str, ...]] | None = None,
    max_file_size: int | None = None,
    random_state: Mapping[str, Tensor] | None = None,
    add_files: Callable[[Path], Iterable[str]],
) -> Path:
    """Writes a checkpoint as one process would have saved it.

    Args:
        output: ``global_step<N>`` folder to make, or a run folder whose ``latest`` then names it.
        default_name: Name of the folder to make in a run folder.
        parameters: Description of every parameter, with the extents of one process.
        read: Returns a parameter or a moment of it, by name and kind, float32, logical shape.
        moment_names: Moments to write beside ``fp32``.
        kinds_of: ``fp32`` and the moments of a parameter, where not all have all of them.
        max_file_size: Bytes from which on a new file is begun; None: one file, whole in memory.
        random_state: Random states of the only rank.
        add_files: Writes all else into a folder; returns names to list beside ``configs/``.

    Returns:
        The new ``global_step<N>`` folder.

    Raises:
        CheckpointError: If it exists already.
    """
    final = step_folder_to_make(output, default_name)
    if final.exists():
        raise CheckpointError(f"{final}: exists already; choose another output")
    with _complete_or_missing(final) as folder:
        index = _write_tensors(
            folder,
            parameters,
            read,
            moment_names=moment_names,
            kinds_of=kinds_of or (lambda _: ("fp32", *moment_names)),
            max_file_size=max_file_size,
            first_tensors={random_state_key(k): v for k, v in (random_state or {}).items()},
        )
        others = tuple(add_files(folder))
        for name in (*others, *config_names(folder)):
            with (folder / name).open("rb+") as stream:
                flush_to_disk(stream)
        write_index(folder, **index, others=others)
    if final != output:
        write_text_atomic(output / "latest", final.name)
    return final


@contextlib.contextmanager
def _complete_or_missing(final: Path) -> Iterator[Path]:
    """Makes a folder that gets the name ``final`` at the end; nothing is left after an error."""
    temporary = final.with_name(final.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with all_or_nothing(final.parent):
        temporary.mkdir(parents=True)
        try:
            yield temporary
            replace_folder(temporary, final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextlib.contextmanager
def all_or_nothing(output: Path, *files: Path) -> Iterator[None]:
    """Makes a folder; after an error removes it if it is new, and files that did not exist."""
    is_new = not output.exists()
    output.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in files:
            path.unlink(missing_ok=True)
        if is_new:
            with contextlib.suppress(OSError):  # others may have written into it
                output.rmdir()
        raise


def _write_tensors(
    folder: Path,
    parameters: Mapping[str, ParameterInfo],
    read: Callable[[str, str], Tensor],
    *,
    moment_names: tuple[str, ...],
    kinds_of: Callable[[str], tuple[str, ...]],
    max_file_size: int | None,
    first_tensors: Mapping[str, Tensor],
) -> dict[str, Any]:
    """Writes all tensors and returns what `write_index` takes of them."""
    entries = {name: index_entry(info) for name, info in parameters.items()}
    files: dict[str, dict[str, int]] = {}
    item_size = 4 * (1 + len(moment_names))
    sizes = {name: item_size * math.prod(info.shape) for name, info in parameters.items()}
    for number, group in enumerate(groups_by_size(sizes, max_file_size)):
        file = f"rank_{number:05d}.safetensors"
        tensors = dict(first_tensors) if number == 0 else {}
        storages: set[int] = set()
        for name in group:
            for kind in kinds_of(name):
                flat = read(name, kind).flatten()
                if flat.untyped_storage().data_ptr() in storages:
                    flat = flat.clone()  # tensors of a .bin file may share memory
                storages.add(flat.untyped_storage().data_ptr())
                tensors[fragment_key(kind, name, 0, 0)] = flat
                length = flat.numel()
            entries[name]["fragments"].append((file, 0, 0, length))
        files[file] = write_checked_tensors(folder / file, tensors)
    return {
        "layout": LAYOUT,
        "moments": moment_names,
        "parameters": entries,
        "files": files,
    }


def groups_by_size(sizes: Mapping[str, int], limit: int | None) -> Iterator[list[str]]:
    """Cuts names, in order, into groups of at most ``limit`` bytes and at least one name."""
    group: list[str] = []
    filled = 0
    for name, size in sizes.items():
        if group and limit is not None and filled + size > limit:
            yield group
            group, filled = [], 0
        group.append(name)
        filled += size
    if group:
        yield group


def parse_size(text: str, flag: str = "--max_file_size") -> int:
    """Bytes of ``5GB``, ``200MiB`` or ``1000``; capitals do not matter.

    Raises:
        UserError: For anything else, naming the ``flag``.
    """
    match = re.fullmatch(r"([0-9.]+) *([kmg]i?)?b?", text.strip().lower())
    try:
        size = int(float(match[1]) * UNITS[match[2] or ""]) if match else 0
    except ValueError:  # such as 1.2.3
        size = 0
    if size < 1:
        raise UserError(f"{flag}: must be a size such as 5GB, got {text!r}")
    return size
