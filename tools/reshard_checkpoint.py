#!/usr/bin/env python
"""Rewrites a checkpoint of any layout as that of a single process.

    python tools/reshard_checkpoint.py --input runs/a --output runs/a_single
    python tools/reshard_checkpoint.py --input runs/a/global_step500 --output elsewhere

Training does not need it: every checkpoint loads on every layout. It is for those who want whole
tensors in as few files as possible. Memory: the tensors of one file.
"""

import argparse
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a file: the packages lie one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from safetensors.torch import save_file
from torch import Tensor

from megatron.checkpoint_format import (
    FORMAT_VERSION,
    CheckpointReader,
    checkpoint_steps,
    fragment_key,
    index_checksum,
    step_folder,
    verify,
)
from megatron.errors import CheckpointError
from megatron.files import (
    crc32_of_file,
    flush_to_disk,
    fsync_folder,
    write_json_atomic,
    write_text_atomic,
)

COPIED = ("state.json", "mixture.json")
LAYOUT = {"dp": 1, "tp": 1, "pp": 1}
UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}


def reshard(source: Path, output: Path, *, max_file_size: int | None = None) -> Path:
    """Writes the checkpoint ``source`` below ``output``, as one process would have saved it.

    Args:
        source: A ``global_step<N>`` folder; its checksums are verified first.
        output: ``global_step<N>`` folder to make, or a run folder whose ``latest`` then names it.
        max_file_size: Bytes of tensors from which on a new file is begun. Not given: one file,
            which takes as much memory as the checkpoint is large.

    Returns:
        The new ``global_step<N>`` folder. Random states of several ranks are left out: they belong
        to their layout.

    Raises:
        CheckpointError: If the source is damaged, or the result exists already.
    """
    verify(source)
    is_run_folder = not _is_step_name(output.name)
    final = output / source.name if is_run_folder else output
    if final.exists():
        raise CheckpointError(f"{final}: exists already; choose another --output")
    temporary = final.with_name(final.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    reader = CheckpointReader(source)
    random_state = source / "rng_00000.safetensors"
    keeps_random_state = reader.layout == LAYOUT and random_state.is_file()
    try:
        index = _write_tensors(reader, temporary, max_file_size)
        for name in (*COPIED, random_state.name) if keeps_random_state else COPIED:
            index["files"][name] = _copy(source / name, temporary / name)
        if (source / "configs").is_dir():
            shutil.copytree(source / "configs", temporary / "configs")
        write_json_atomic(temporary / "index.json", {**index, "crc32": index_checksum(index)})
        fsync_folder(temporary)
        os.replace(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_folder(final.parent)
    if is_run_folder:
        write_text_atomic(output / "latest", final.name)
    return final


def _is_step_name(name: str) -> bool:
    return name.startswith("global_step") and name[len("global_step") :].isdecimal()


def find_source(path: Path, iteration: int | None) -> Path:
    """Finds the checkpoint that a run folder (its latest, or ``iteration``) or a path names.

    Raises:
        CheckpointError: If there is none.
    """
    if (path / "index.json").is_file():
        if iteration is not None and path.name != step_folder(path, iteration).name:
            raise CheckpointError(f"{path}: is not iteration {iteration}; leave out --iteration")
        return path.resolve()
    steps = checkpoint_steps(path) if path.is_dir() else []
    latest = path / "latest"
    if iteration is None and latest.is_file():
        folder = path / latest.read_text(encoding="utf-8").strip()
        if (folder / "index.json").is_file():
            return folder
    step = iteration if iteration is not None else max(steps, default=None)
    if step not in steps:
        found = ", ".join(map(str, steps)) or "none"
        wanted = "" if iteration is None else f" of iteration {iteration}"
        raise CheckpointError(f"{path}: no checkpoint{wanted}; found: {found}")
    return step_folder(path, step)


def _write_tensors(
    reader: CheckpointReader, folder: Path, max_file_size: int | None
) -> dict[str, Any]:
    """Writes all tensors and returns the index without the other files."""
    entries: dict[str, dict[str, Any]] = {
        name: {"shape": info.shape, "tp_dim": info.tp_dim, "extent": info.extent, "fragments": []}
        for name, info in reader.parameters.items()
    }
    files: dict[str, dict[str, int]] = {}
    for number, group in enumerate(_groups(reader, max_file_size)):
        file = f"rank_{number:05d}.safetensors"
        tensors: dict[str, Tensor] = {}
        for name in group:
            for kind in ("fp32", *reader.moment_names):
                flat = reader.read_logical(name, kind).flatten()
                tensors[fragment_key(kind, name, 0, 0)] = flat
                length = flat.numel()
            entries[name]["fragments"].append((file, 0, 0, length))
        save_file(tensors, folder / file)
        files[file] = _facts(folder / file)
    return {
        "version": FORMAT_VERSION,
        "layout": LAYOUT,
        "moments": list(reader.moment_names),
        "parameters": entries,
        "files": files,
    }


def _groups(reader: CheckpointReader, max_file_size: int | None) -> Iterator[list[str]]:
    """Names of the parameters of each file, at least one a file."""
    group: list[str] = []
    filled = 0
    for name, info in reader.parameters.items():
        size = 4 * (1 + len(reader.moment_names))
        for length in info.shape:
            size *= length
        if group and max_file_size is not None and filled + size > max_file_size:
            yield group
            group, filled = [], 0
        group.append(name)
        filled += size
    if group:
        yield group


def _copy(source: Path, target: Path) -> dict[str, int]:
    shutil.copyfile(source, target)
    return _facts(target)


def _facts(path: Path) -> dict[str, int]:
    """Size and checksum for the index, once the file is on the disk."""
    with path.open("rb+") as stream:
        flush_to_disk(stream)
    return {"size": path.stat().st_size, "crc32": crc32_of_file(path)}


def parse_size(text: str) -> int:
    """Bytes of ``5GB``, ``200MiB`` or ``1000``; capitals do not matter.

    Raises:
        ValueError: For anything else.
    """
    match = re.fullmatch(r"([0-9.]+) *([kmg]i?)?b?", text.strip().lower())
    try:
        size = int(float(match[1]) * UNITS[match[2] or ""]) if match else 0
    except ValueError:  # such as 1.2.3
        size = 0
    if size < 1:
        raise ValueError(f"--max_file_size: must be a size such as 5GB, got {text!r}")
    return size


def get_parser() -> argparse.ArgumentParser:
    """Describes the command line."""
    parser = argparse.ArgumentParser(description="Rewrite a checkpoint as that of one process.")
    parser.add_argument("--input", required=True, help="folder of a run, or a global_step<N> in it")
    parser.add_argument(
        "--output", required=True, help="folder of a run, or a global_step<N> to make"
    )
    parser.add_argument("--iteration", type=int, help="checkpoint of the run (default: the latest)")
    parser.add_argument(
        "--max_file_size",
        metavar="SIZE",
        help="begin a new file at this size, such as 5GB; bounds the memory too",
    )
    return parser


def main(input_args: Sequence[str] | None = None) -> None:
    """Runs the command; ends with exit code 2 and one line if the input is wrong."""
    args = get_parser().parse_args(input_args)
    try:
        size = None if args.max_file_size is None else parse_size(args.max_file_size)
        source = find_source(Path(args.input), args.iteration)
        final = reshard(source, Path(args.output), max_file_size=size)
    except (CheckpointError, OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    sys.stdout.write(f"wrote {final}\n")


if __name__ == "__main__":
    main()
