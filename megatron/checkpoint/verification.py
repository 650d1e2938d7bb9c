"""Checks the files of a checkpoint before anything is used."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from megatron.checkpoint.format import (
    IN_CONTENT,
    OLD_RANDOM_STATE,
    CheckpointReader,
    read_content,
)
from megatron.checkpoint.runs import rank_number
from megatron.checkpoint.schema import RUN_FILES
from megatron.errors import CheckpointError
from megatron.files import crc32_of_file

__all__ = ["verify"]


def verify(folder: Path, *, part: int = 0, num_parts: int = 1, reads_tensors: bool = True) -> None:
    """Checks all files of a checkpoint: presence, size, checksum and content.

    Args:
        folder: A ``global_step<N>`` folder.
        part: Number of this part, from 0. With ``num_parts`` > 1 only the files of this part are
            looked at, so that ranks share the work. They are those that a rank loads from if the
            layout has not changed. The index is always checked.
        num_parts: Number of ranks sharing the work.
        reads_tensors: False does not read the tensors of files that have checksums in their header:
            whoever reads them compares. In checkpoints of earlier versions all is read.

    Raises:
        CheckpointError: If a file is missing, cut, changed or wrong; names the first such file, and
            the field if its content is wrong.
    """
    reader = CheckpointReader(folder)
    names = _part_of(_names_to_check(reader), part, num_parts)
    for name in names:
        if name in reader.files:
            _check_file(reader, name, reads_tensors=reads_tensors)
        if name in IN_CONTENT:
            read_content(folder, name)
        elif rank_number(name) >= 0 or name.startswith(OLD_RANDOM_STATE):
            reader.random_state_in(name)
    reader.check_fragments(names)
    if part == 0:
        _check_steps(folder)


def _check_file(reader: CheckpointReader, name: str, *, reads_tensors: bool) -> None:
    """Raises an error if a file is not as the index says."""
    path, facts = reader.folder / name, reader.files[name]
    try:
        size = path.stat().st_size
    except OSError:  # missing, or a name that is too long
        raise CheckpointError(f"{path}: listed in index.json but missing") from None
    if size != facts["size"]:
        raise CheckpointError(f"{path}: {size} bytes, index.json says {facts['size']}")
    if "header_crc32" in facts:
        file = reader.file(name)
        if reads_tensors:
            file.verify()
    elif crc32_of_file(path) != facts["crc32"]:
        raise CheckpointError(f"{path}: checksum differs from index.json; the file is damaged")


def _part_of(names: Iterable[str], part: int, num_parts: int) -> list[str]:
    """The names of one part: neighbours among the files of ranks, and every n-th of the others."""
    in_order = sorted(names)
    of_ranks = [name for name in in_order if rank_number(name) >= 0]
    others = [name for name in in_order if rank_number(name) < 0]
    first, end = (len(of_ranks) * bound // num_parts for bound in (part, part + 1))
    return sorted([*of_ranks[first:end], *others[part::num_parts]])


def _check_steps(folder: Path) -> None:
    """Raises an error if the mixture is of a later step than the run, so of another checkpoint."""
    try:
        state, mixture = (read_content(folder, name) for name in RUN_FILES)
    except CheckpointError:  # reported by the rank that checks this file
        return
    step = state["counters"]["step"]
    if mixture is not None and mixture["step"] > step:
        raise CheckpointError(
            f"{folder / 'mixture.json'}: is of step {mixture['step']}, state.json of step {step}; "
            "the two files belong to different checkpoints"
        )


def _names_to_check(reader: CheckpointReader) -> list[str]:
    """Listed files, and the configuration of an older checkpoint, which has no checksum."""
    unlisted = [name for name in IN_CONTENT if (reader.folder / name).exists()]
    return sorted({*reader.files, *unlisted})
