#!/usr/bin/env python
"""Rewrites a checkpoint of any layout as that of a single process.

    python tools/reshard_checkpoint.py --input runs/a --output runs/a_single
    python tools/reshard_checkpoint.py --input runs/a/global_step500 --output elsewhere

Training does not need it: every checkpoint loads on every layout. It is for those who want whole
tensors in as few files as possible. Memory: the tensors of one file.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # started as a file: the packages are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from megatron.launcher.installation import explain_missing_packages

    explain_missing_packages()

from megatron.checkpoint.format import CheckpointReader
from megatron.checkpoint.verification import verify
from megatron.errors import CheckpointError, UserError
from megatron.files import describe_error
from megatron.launcher.path_argument import path_argument
from tools.checkpoints.single_process import (
    LAYOUT,
    find_source,
    parse_size,
    step_folder_to_make,
    write_checkpoint,
)

COPIED = ("state.json", "mixture.json")


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
    final = step_folder_to_make(output, source.name)
    if final.exists():
        raise CheckpointError(f"{final}: exists already; choose another --output")
    reader = CheckpointReader(source)

    def copy_the_rest(folder: Path) -> tuple[str, ...]:
        for name in COPIED:
            shutil.copyfile(source / name, folder / name)
        if (source / "configs").is_dir():
            shutil.copytree(source / "configs", folder / "configs")
        return COPIED

    return write_checkpoint(
        output,
        source.name,
        parameters=reader.parameters,
        read=reader.read_logical,
        moment_names=reader.moment_names,
        kinds_of=reader.kinds_of,
        max_file_size=max_file_size,
        random_state=reader.random_state(0) if reader.layout == LAYOUT else None,
        add_files=copy_the_rest,
    )


def get_parser() -> argparse.ArgumentParser:
    """Describes the command line."""
    parser = argparse.ArgumentParser(description="Rewrite a checkpoint as that of one process.")
    parser.add_argument(
        "--input",
        type=path_argument,
        required=True,
        help="folder of a run, or a global_step<N> in it",
    )
    parser.add_argument(
        "--output",
        type=path_argument,
        required=True,
        help="folder of a run, or a global_step<N> to make",
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
        source = find_source(args.input, args.iteration)
        final = reshard(source, args.output, max_file_size=size)
    except (UserError, OSError) as error:
        sys.stderr.write(f"{describe_error(error)}\n")
        sys.exit(2)
    sys.stdout.write(f"wrote {final}\n")


if __name__ == "__main__":
    main()
