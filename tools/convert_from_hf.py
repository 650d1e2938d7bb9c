#!/usr/bin/env python
"""Makes a checkpoint and a YAML file from a model folder of transformers: Pythia, Llama, Qwen ...

    python tools/convert_from_hf.py --input_dir pythia-70m --output_dir checkpoints/pythia-70m

Training continues from it on any layout: add data, optimizer and batch size to the YAML file.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # started as a file: the packages are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from megatron.launcher.installation import explain_missing_packages

    explain_missing_packages()

from safetensors import SafetensorError

from megatron.errors import UserError
from megatron.files import describe_error
from megatron.launcher.path_argument import path_argument
from tools.datasets.shown_commands import option
from tools.hf.importing import convert_from_hf
from tools.hf.tokenizer_files import TOKENIZER_FILE


def get_parser() -> argparse.ArgumentParser:
    """Describes the command line."""
    parser = argparse.ArgumentParser(description="Import a model folder of transformers.")
    parser.add_argument(
        "--input_dir",
        type=path_argument,
        required=True,
        help="folder with config.json and safetensors or .bin files",
    )
    parser.add_argument(
        "--output_dir", type=path_argument, required=True, help="folder of the run to make"
    )
    parser.add_argument(
        "--config_out",
        type=path_argument,
        metavar="YAML",
        help="file to write (default: OUTPUT_DIR/model.yml)",
    )
    parser.add_argument(
        "--seq_length",
        type=int,
        metavar="TOKENS",
        help="length of samples to write (default: the longest text of the model)",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare logits with transformers, which must be installed; memory: two models",
    )
    return parser


def main(input_args: Sequence[str] | None = None) -> None:
    """Runs the command; ends with exit code 2 and a message if the input is wrong."""
    args = get_parser().parse_args(input_args)
    output: Path = args.output_dir
    config_out: Path = args.config_out or output / "model.yml"
    try:
        final = convert_from_hf(
            args.input_dir,
            output,
            config_out=config_out,
            seq_length=args.seq_length,
            verifies=args.verify,
            say=_print,
        )
    except (UserError, SafetensorError, OSError) as error:
        sys.stderr.write(f"{describe_error(error)}\n")
        sys.exit(2)
    _print(f"wrote {final} and {config_out}")
    tokenizer = output / TOKENIZER_FILE
    if tokenizer.is_file():
        more = shlex.join(["--input", "FOLDER", *option("--vocab-file", tokenizer)])
        _print(f"prepare the data with its tokenizer: python prepare_data.py local {more}")


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
