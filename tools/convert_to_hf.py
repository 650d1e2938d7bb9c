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
from megatron.launcher.path_argument import path_argument
from tools.checkpoints.single_process import find_source, parse_size
from tools.hf.exporting import DTYPES, ExportOptions, export
from tools.hf.families import FAMILIES, NEOX
from tools.hf.settings import RunSettings, settings_of
from tools.hf.verification import TOLERANCE

_DTYPE_OF_PRECISION = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
_DTYPE_OF_TRAINING = {"fp16": "float16", "bfloat16": "bfloat16"}


def get_parser() -> argparse.ArgumentParser:
    """Describes the command line."""
    parser = argparse.ArgumentParser(description="Export a checkpoint for transformers.")
    parser.add_argument(
        "--input_dir",
        type=path_argument,
        required=True,
        help="folder of a run, or a global_step<N> in it",
    )
    parser.add_argument("--output_dir", type=path_argument, required=True, help="folder to make")
    parser.add_argument(
        "--config_file",
        type=path_argument,
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
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="number format (default: float32)")
    parser.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="load the result in transformers and compare logits on real text (default: yes)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        help="largest difference of logits in float32, the weights rounded to --dtype on both "
        "sides (default: 1e-4)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    _add_neox_flags(parser)
    return parser


def _add_neox_flags(parser: argparse.ArgumentParser) -> None:
    """Options that GPT-NeoX's converter has too."""
    parser.add_argument(
        "--architecture",
        choices=(*FAMILIES, NEOX),
        help="family of model classes (default: the first that expresses the network)",
    )
    parser.add_argument(
        "--precision",
        choices=("auto", *_DTYPE_OF_PRECISION),
        help="number format, instead of --dtype; auto: that of training",
    )
    parser.add_argument(
        "--no_save_tokenizer", action="store_true", help="write no files of the tokenizer"
    )
    parser.add_argument(
        "--pad-token-id", type=int, metavar="ID", help="id that fills up a text, for config.json"
    )
    parser.add_argument(
        "--vocab-is-hf-tokenizer",
        action="store_true",
        help="vocab_file is in the folder of a tokenizer of transformers; copy its files",
    )


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
        _check_flags(args)
        max_shard_size = parse_size(args.max_shard_size, "--max_shard_size")
        source = find_source(args.input_dir, args.iteration, reads_neox=True)
        output: Path = args.output_dir
        settings = settings_of(source, args.config_file, overwrite_values)
        options = ExportOptions(
            max_shard_size=max_shard_size,
            dtype=_dtype(args, settings),
            verifies=args.verify,
            tolerance=TOLERANCE if args.tolerance is None else args.tolerance,
            overwrite=args.overwrite,
            architecture=args.architecture,
            saves_tokenizer=not args.no_save_tokenizer,
            pad_token_id=args.pad_token_id,
            copies_tokenizer=args.vocab_is_hf_tokenizer,
        )
        export(source, output, settings=settings, options=options, say=_print)
    except (UserError, SafetensorError, OSError) as error:
        sys.stderr.write(f"{describe_error(error)}\n")
        sys.exit(2)
    _print(f"wrote {output}")


def _check_flags(args: argparse.Namespace) -> None:
    """Refuses flags that contradict each other, before anything is read."""
    if args.no_save_tokenizer and args.vocab_is_hf_tokenizer:
        raise UserError("--no_save_tokenizer, --vocab-is-hf-tokenizer: give only one of them")
    if args.dtype is not None and args.precision is not None:
        raise UserError("--dtype, --precision: both name the number format; give only one of them")
    if args.tolerance is None:
        return
    if not args.verify:
        raise UserError("--tolerance, --no-verify: nothing is compared; give only one of them")
    if not args.tolerance > 0:  # NaN, too
        raise UserError(f"--tolerance: must be a number above 0, got {args.tolerance:g}")


def _dtype(args: argparse.Namespace, settings: RunSettings) -> str:
    """The key of `DTYPES` that was asked for."""
    if args.precision is None:
        return args.dtype or "float32"
    if args.precision != "auto":
        return _DTYPE_OF_PRECISION[args.precision]
    return _DTYPE_OF_TRAINING.get(settings.dtype or "fp32", "float32")


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
