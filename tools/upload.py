#!/usr/bin/env python
"""Uploads a model folder to the Hugging Face Hub, with a model card made from its run.

    python tools/upload.py exported/first --repo_id someone/first --run_dir checkpoints/first

The card tells domains, final weights, losses of each domain, method, size and commands; it takes
them from the checkpoint and the run log in --run_dir. --dry_run prints the card and the files and
talks to nobody. The token comes from HF_TOKEN, a saved login, or --token_file, never from the
command line, where `ps` would show it. HF_ENDPOINT names another Hub.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a file: the packages are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from megatron.launcher.installation import explain_missing_packages

    explain_missing_packages()

from megatron.errors import UserError
from megatron.files import describe_error
from megatron.launcher.path_argument import path_argument
from odm.json_data import fields, list_of, optional, read_json, text
from odm.wording import counted
from tools.hf.model_card import model_card
from tools.hf.run_facts import read_run
from tools.hf.uploading import (
    CARD_NAME,
    Upload,
    UploadError,
    files_of,
    read_token,
    upload,
)

_CONFIG = fields({}, {"architectures": optional(list_of(text())), "model_type": optional(text())})
"""What the card takes from config.json."""


def get_parser() -> argparse.ArgumentParser:
    """Describes the command line."""
    parser = argparse.ArgumentParser(description="Upload a model to the Hugging Face Hub.")
    parser.add_argument(
        "folder", type=path_argument, help="what to upload, such as an export of convert_to_hf.py"
    )
    parser.add_argument("--repo_id", required=True, help="name, or owner/name; made if missing")
    parser.add_argument(
        "--run_dir", type=path_argument, help="folder of the run, from which the card is made"
    )
    parser.add_argument("--iteration", type=int, help="checkpoint of the run (default: the latest)")
    parser.add_argument(
        "--private",
        action=argparse.BooleanOptionalAction,
        help="make a new repository private (default: the Hub's)",
    )
    parser.add_argument("--license", metavar="ID", help="licence, such as apache-2.0")
    parser.add_argument("--message", default="Upload with ODM-NeoX", help="commit message")
    parser.add_argument(
        "--token_file",
        type=path_argument,
        help="file with the token (default: HF_TOKEN, or a saved login)",
    )
    parser.add_argument("--dry_run", action="store_true", help="print what would be uploaded")
    return parser


def main(input_args: Sequence[str] | None = None) -> None:
    """Runs the command; ends with exit code 2 and one line if something is wrong."""
    args = get_parser().parse_args(input_args)
    try:
        job = _make_job(args)
        if args.dry_run:
            _print_plan(job)
            return
        token = read_token(args.token_file)
        address = upload(job, token=token, endpoint=os.environ.get("HF_ENDPOINT"), say=_print)
    except (UserError, OSError) as error:
        sys.stderr.write(f"{describe_error(error)}\n")
        sys.exit(2)
    _print(f"uploaded {_amount(job)} to {address}")


def _make_job(args: argparse.Namespace) -> Upload:
    files = files_of(args.folder)
    card = None
    if CARD_NAME in files and args.run_dir is None:
        _print(f"{files[CARD_NAME]}: is uploaded as the model card")
    else:
        if (own := files.pop(CARD_NAME, None)) is not None:
            _print(f"{own}: is not uploaded; the card made from the run replaces it")
        run = read_run(args.run_dir, args.iteration) if args.run_dir else None
        if run is None:
            _print("no --run_dir: the card says nothing about the training")
        config = _model_config(files)
        card = partial(model_card, run=run, config=config, license_id=args.license)
    return Upload(
        repo_id=args.repo_id, files=files, card=card, private=args.private, message=args.message
    )


def _model_config(files: dict[str, Path]) -> dict[str, Any] | None:
    path = files.get("config.json")
    if path is None:
        return None
    return read_json(path, _CONFIG, error=UploadError, what="model configuration")


def _print_plan(job: Upload) -> None:
    sizes = {name: path.stat().st_size for name, path in job.files.items()}
    if job.card is not None:
        text = job.card(job.repo_id)
        sizes[CARD_NAME] = len(text.encode())
        _print(text)
    _print(f"{_amount(job)} for {job.repo_id}; nothing is uploaded (--dry_run):")
    width = max(len(f"{size:,}") for size in sizes.values())
    for name, size in sorted(sizes.items()):
        _print(f"{size:{width},}  {name}")


def _amount(job: Upload) -> str:
    count = len(job.files) + (job.card is not None)
    size = sum(path.stat().st_size for path in job.files.values())
    return f"{counted(count, 'file')} of {size / 1e6:,.1f} MB"


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
