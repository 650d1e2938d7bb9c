#!/usr/bin/env python
"""Writes a checkpoint of GPT-NeoX as one of ours.

    python tools/checkpoints/import_neox.py 20B_checkpoints --config model.yml -o runs/20B

Training, evaluation and generation load GPT-NeoX's folders as they are; this command is for the
programs that read ours alone, and for a copy that is checked by checksums. Weights in half
precision become float32. Iteration, optimizer states (ZeRO 0 to 3) and learning-rate schedule are
taken over; the data mixture starts from its beginning. One process, any number of model-parallel
parts, no code of the files is run.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # started as a file: the packages are two folders up
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from megatron.launcher.installation import explain_missing_packages

    explain_missing_packages()

from safetensors import SafetensorError

from megatron.errors import UserError
from megatron.files import describe_error
from megatron.launcher.path_argument import path_argument
from tools.checkpoints.neox_import import import_neox


def get_parser() -> argparse.ArgumentParser:
    """Describes the command line."""
    parser = argparse.ArgumentParser(description="Import a checkpoint of GPT-NeoX.")
    parser.add_argument(
        "folder", type=path_argument, help="folder with global_step<N> folders, or one of these"
    )
    parser.add_argument(
        "--config",
        type=path_argument,
        nargs="+",
        action="extend",
        default=[],
        metavar="YAML",
        help="configuration files of the model (default: those in the checkpoint's configs)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=path_argument,
        required=True,
        metavar="OUT",
        help="folder of the run to make",
    )
    parser.add_argument("--iteration", type=int, help="which checkpoint (default: the latest)")
    parser.add_argument(
        "--no-optimizer", action="store_true", help="leave the optimizer's states out"
    )
    return parser


def main(input_args: Sequence[str] | None = None) -> None:
    """Runs the command; ends with exit code 2 and a message if the input is wrong."""
    args = get_parser().parse_args(input_args)
    try:
        final = import_neox(
            args.folder,
            args.output,
            config_files=args.config,
            iteration=args.iteration,
            with_optimizer=not args.no_optimizer,
            say=_print,
        )
    except (UserError, SafetensorError, OSError) as error:
        sys.stderr.write(f"{describe_error(error)}\n")
        sys.exit(2)
    _print(f"wrote {final}; load it with load: {final.parent}")


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
