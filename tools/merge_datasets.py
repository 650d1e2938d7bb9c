"""Joins tokenized data sets: ``python tools/merge_datasets.py --input A B --output-prefix C``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # started as a file: the packages are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from megatron.launcher.installation import explain_missing_packages

    explain_missing_packages()

from megatron.data.errors import DataError
from megatron.data.indexed_dataset import (
    MMapIndexedDataset,
    MMapIndexedDatasetBuilder,
    data_file_path,
    index_file_path,
)
from megatron.data.metadata import merge_metadata, metadata_path, read_metadata, write_metadata
from megatron.errors import UserError
from megatron.files import describe_error, is_same_path
from megatron.launcher.path_argument import not_empty
from megatron.tokenizer.command_line import exit_code
from megatron.tokenizer.file_kinds import is_hidden
from odm.wording import counted
from tools.datasets.left_overs import locked_temporaries, remove_left_overs


def merge_datasets(prefixes: Sequence[str], output_prefix: str) -> None:
    """Writes the concatenation of data sets, items, documents and metadata.

    Args:
        prefixes: Prefixes of the parts, in the order wanted.
        output_prefix: Prefix of the result; it appears only when it is whole.

    Raises:
        DataError: If a part is damaged, the parts have different types or tokenizers, or the
            result would replace a part.
    """
    output = Path(output_prefix)
    if any(is_same_path(output, prefix) for prefix in prefixes):
        raise DataError(f"{output}: is both an input and the output; choose another output prefix")
    metadata = merge_metadata([read_metadata(prefix) for prefix in prefixes])
    dtype = MMapIndexedDataset(prefixes[0]).dtype
    data = Path(data_file_path(output))
    data.parent.mkdir(parents=True, exist_ok=True)
    remove_left_overs(data, tell=lambda line: print(line, file=sys.stderr))
    with MMapIndexedDatasetBuilder(data, dtype) as builder, locked_temporaries(data):
        for prefix in prefixes:
            builder.merge_file_(prefix)
        metadata_path(output).unlink(missing_ok=True)  # of an older result: it would not be true
        builder.finalize(index_file_path(output))
    if metadata is not None:
        write_metadata(output, metadata)


def find_prefixes(inputs: Sequence[str]) -> list[str]:
    """Turns folders into the sorted prefixes of the data sets in them; other names are prefixes.

    Raises:
        DataError: If a folder contains no data set.
    """
    prefixes: list[str] = []
    for name in inputs:
        if not Path(name).is_dir():
            prefixes.append(name)
            continue
        files = [
            path
            for path in Path(name).iterdir()
            if path.suffix in (".bin", ".idx") and not is_hidden(path.name)
        ]
        if not files:
            raise DataError(f"{name}: no .idx file in this folder; give a folder of data sets")
        # half a data set is a prefix too: to open it says which half is missing
        prefixes += sorted({str(path.with_suffix("")) for path in files})
    return prefixes


def check_apart(inputs: Sequence[str], output_prefix: str) -> None:
    """Refuses a result in a folder of parts: the next merge of that folder would count it twice.

    Raises:
        DataError: Names the folder.
    """
    for name in inputs:
        if Path(name).is_dir() and is_same_path(name, Path(output_prefix).parent):
            raise DataError(
                f"--output-prefix {output_prefix}: is in the input folder {name}, so the next "
                "merge would read the result too; choose a prefix in another folder"
            )


def get_parser() -> argparse.ArgumentParser:
    """Describes the command line."""
    parser = argparse.ArgumentParser(description="Join tokenized data sets into one.")
    parser.add_argument(
        "--input",
        nargs="+",
        action="extend",
        required=True,
        type=not_empty,
        metavar="PREFIX_OR_FOLDER",
        help="prefixes of data sets, or folders of them (taken in the order of their names)",
    )
    parser.add_argument(
        "--output-prefix", required=True, type=not_empty, help="prefix of the files to make"
    )
    return parser


def main(input_args: Sequence[str] | None = None) -> None:
    """Runs the command; ends with exit code 2 and one line if the data are wrong."""
    args = get_parser().parse_args(input_args)
    try:
        check_apart(args.input, args.output_prefix)
        prefixes = find_prefixes(args.input)
        merge_datasets(prefixes, args.output_prefix)
    except (UserError, OSError) as error:
        print(f"merge_datasets: {describe_error(error)}", file=sys.stderr)
        sys.exit(2)
    merged = MMapIndexedDataset(args.output_prefix)
    print(
        f"{args.output_prefix}: {counted(len(prefixes), 'data set')}, "
        f"{counted(len(merged), 'item')}, {counted(len(merged.tokens), 'token')}"
    )


if __name__ == "__main__":
    sys.exit(exit_code(main))
