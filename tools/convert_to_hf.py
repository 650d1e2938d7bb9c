#!/usr/bin/env python
"""Writes a checkpoint as a model folder that transformers and programs built on it can load.

    python tools/convert_to_hf.py --input_dir checkpoints/first --output_dir exported/first

Any layout is read, and checkpoints of GPT-NeoX, in one process and without deepspeed. The result is
compared with our own network on real text before it gets its name. See docs/huggingface.md.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a file: the packages are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from megatron.launcher.installation import explain_missing_packages

    explain_missing_packages()

from safetensors import SafetensorError

from megatron.errors import UserError
from megatron.files import describe_error
from tools.checkpoints.single_process import find_source, parse_size
from tools.hf.exporting import DTYPES, ExportOptions, export
from tools.hf.settings import settings_of


def get_parser() -> argparse.ArgumentParser:
    """Describes the command line."""
    parser = argparse.ArgumentParser(description="Export a checkpoint for transformers.")
    parser.add_argument(
        "--input_dir", required=True, help="folder of a run, or a global_step<N> in it"
    )
    parser.add_argument("--output_dir", required=True, help="folder to make")
    parser.add_argument(
        "--config_file",
        nargs="+",
        default=[],
        metavar="YAML",
        help="files of the run (default: the configuration inside the checkpoint)",
    )
    parser.add_argument("--iteration", type=int, help="checkpoint of the run (default: the latest)")
    parser.add_argument(
        "--max_shard_size",
        default="5GB",
        metavar="SIZE",
        help="begin a new file at this size; bounds the memory too (default: 5GB)",
    )
    parser.add_argument(
        "--dtype", choices=tuple(DTYPES), default="float32", help="number format (default: float32)"
    )
    parser.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="load the result in transformers and compare logits on real text (default: yes)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        help="largest difference of logits in float32, the weights rounded to --dtype on both "
        "sides (default: 1e-4)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    return parser


def main(
    input_args: Sequence[str] | None = None, overwrite_values: Mapping[str, Any] | None = None
) -> None:
    """Runs the command; ends with exit code 2 and a message if the input is wrong.

    Args:
        input_args: The command line; None reads that of the process.
        overwrite_values: Fields of the configuration to replace.
    """
    args = get_parser().parse_args(input_args)
    try:
        options = ExportOptions(
            max_shard_size=parse_size(args.max_shard_size, "--max_shard_size"),
            dtype=args.dtype,
            verifies=args.verify,
            tolerance=args.tolerance,
            overwrite=args.overwrite,
        )
        source = find_source(Path(args.input_dir), args.iteration, reads_neox=True)
        output = Path(args.output_dir)
        settings = settings_of(source, args.config_file, overwrite_values)
        export(source, output, settings=settings, options=options, say=_print)
    except (UserError, SafetensorError, OSError) as error:
        sys.stderr.write(f"{describe_error(error)}\n")
        sys.exit(2)
    _print(f"wrote {output}")


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
