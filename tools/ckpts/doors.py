"""Commands of GPT-NeoX that another command here replaces; each file of this folder runs one.

A flag of GPT-NeoX either works, or its answer is a line that says why it is not needed here.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from megatron.launcher.installation import explain_missing_packages
from megatron.launcher.path_argument import not_empty

__all__ = ["DOORS", "run"]

_ON_THE_HUB = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*", re.ASCII)
_ANY_LAYOUT = "a checkpoint loads on any layout"
_META = "convert_llama_weights_to_hf.py of the package transformers"


def run(command: str) -> NoReturn:
    """Does what a file of this folder is for, and ends the program."""
    explain_missing_packages()
    sys.exit(DOORS[command](sys.argv[1:]))


def _refuse(command: str, answer: str) -> NoReturn:
    """Ends the program with exit code 2 and one line."""
    sys.stderr.write(f"{command}: {answer}\n")
    sys.exit(2)


def _refusal(command: str, answer: str) -> Callable[[Sequence[str]], int]:
    def door(arguments: Sequence[str]) -> int:
        _refuse(command, answer)

    return door


def _import_llama(arguments: Sequence[str]) -> int:
    name = "convert_hf_llama_to_neox.py"
    parser = argparse.ArgumentParser(prog=name, description="Import a Llama of transformers.")
    parser.add_argument(
        "--model", type=not_empty, required=True, help="folder, or a name on the Hub"
    )
    parser.add_argument(
        "--model_path", type=not_empty, metavar="OUTPUT", help="folder of the run to make"
    )
    parser.add_argument("--tp", help=f"not needed: {_ANY_LAYOUT}")
    parser.add_argument("--pp", help=f"not needed: {_ANY_LAYOUT}")
    args = parser.parse_args(arguments)
    _say_not_needed(name, args, {"--tp": _ANY_LAYOUT, "--pp": _ANY_LAYOUT})
    if not Path(args.model).is_dir():
        _ask_for_download(name, args.model.rstrip("/"), args.model_path, flag="--model_path")
    return _import_folder(name, args.model, args.model_path, flag="--model_path")


def _import_pythia(arguments: Sequence[str]) -> int:
    name = "convert_hf_to_sequential.py"
    not_needed = {
        "--config": "config.json has the network, and OUTPUT/model.yml is written",
        "--ckpt-tmp-dir": "no checkpoint is written twice",
    }
    parser = argparse.ArgumentParser(prog=name, description="Import a Pythia of transformers.")
    parser.add_argument(
        "--hf-model-name", type=not_empty, required=True, help="folder, or a name of EleutherAI's"
    )
    parser.add_argument(
        "--output-dir", type=not_empty, metavar="OUTPUT", help="folder of the run to make"
    )
    parser.add_argument("--test", action="store_true", help="compare logits with transformers")
    parser.add_argument("--revision", type=not_empty, help="step of Pythia, for the download")
    parser.add_argument("--cache-dir", type=not_empty, help="folder for the download")
    parser.add_argument("--download-only", action="store_true", help="print the download alone")
    parser.add_argument("--config", nargs="*", help=f"not needed: {not_needed['--config']}")
    parser.add_argument("--ckpt-tmp-dir", help=f"not needed: {not_needed['--ckpt-tmp-dir']}")
    args = parser.parse_args(arguments)
    model, output = args.hf_model_name, args.output_dir
    if Path(model).is_dir():
        if args.download_only:
            _refuse(name, f"--download-only: {model} is a folder; nothing has to be downloaded")
        not_needed["--revision"] = f"{model} is a folder, whatever revision it contains"
        not_needed["--cache-dir"] = f"{model} is a folder; nothing is downloaded"
        _say_not_needed(name, args, not_needed)
        return _import_folder(name, model, output, flag="--output-dir", verifies=args.test)
    _say_not_needed(name, args, not_needed)
    revision = args.revision
    _ask_for_download(
        name,
        _name_of_pythia(model.rstrip("/")),
        output,
        flag="--output-dir",
        revision=f"step{revision}" if (revision or "").isdecimal() else revision,
        parent=Path(args.cache_dir or "."),
        verifies=args.test,
        imports=not args.download_only,
    )


def _name_of_pythia(model: str) -> str:
    """EleutherAI's, unless there is an owner, or the word is a path."""
    is_bare = "/" not in model and not Path(model).exists()
    return f"EleutherAI/{model}" if is_bare else model


def _say_not_needed(command: str, args: argparse.Namespace, reasons: Mapping[str, str]) -> None:
    """Prints a line per given flag that changes nothing."""
    for flag, reason in reasons.items():
        if getattr(args, flag.lstrip("-").replace("-", "_")) is not None:
            print(f"{command}: {flag}: not needed; {reason}")


def _import_folder(
    command: str, model: str, output: str | None, *, flag: str, verifies: bool = False
) -> int:
    from tools.convert_from_hf import main as convert_from_hf

    if output is None:
        _refuse(command, f"{flag}: is not given; it names the folder of the run to make")
    more = ["--verify"] if verifies else []
    convert_from_hf(["--input_dir", model, "--output_dir", output, *more])
    return 0


def _ask_for_download(
    command: str,
    model: str,
    output: str | None,
    *,
    flag: str,
    revision: str | None = None,
    parent: Path = Path(),
    verifies: bool = False,
    imports: bool = True,
) -> NoReturn:
    """Ends the program with the commands for a model on the Hub: this program downloads none."""
    if not _ON_THE_HUB.fullmatch(model):
        what = "is a file" if Path(model).exists() else "there is no such folder"
        _refuse(command, f"{model}: {what}, and it is no name on the Hub (OWNER/NAME)")
    folder = str(parent / Path(model).name)
    at = ["--revision", revision] if revision else []
    download = shlex.join(["hf", "download", model, *at, "--local-dir", folder])
    if not imports:
        _refuse(command, f"--download-only: run {download}")
    more = ["--verify"] if verifies else []
    words = ["--input_dir", folder, "--output_dir", output or "OUTPUT", *more]
    then = f"python tools/convert_from_hf.py {shlex.join(words)}"
    _refuse(command, f"{model} is no folder; download it ({download}) and run {then}")


def _inspect(arguments: Sequence[str]) -> int:
    from tools.inspect_checkpoint import main as inspect_checkpoint

    name = "inspect_checkpoints.py"
    parser = argparse.ArgumentParser(prog=name, description="Show a checkpoint, or compare two.")
    parser.add_argument(
        "dir", type=not_empty, help="folder of a checkpoint; with --compare two, with a comma"
    )
    parser.add_argument("--attributes", nargs="*", help="not supported")
    parser.add_argument("--interactive", "-i", action="store_true", help="not supported")
    parser.add_argument("--compare", "-c", action="store_true", help="compare two checkpoints")
    parser.add_argument("--diff", "-d", action="store_true", help="show only what differs")
    args = parser.parse_args(arguments)
    if args.interactive or args.attributes is not None:
        flag = "--interactive" if args.interactive else "--attributes"
        _refuse(name, f"{flag}: is not supported; python tools/inspect_checkpoint.py FOLDER --json")
    if not args.compare:
        if args.diff:
            _refuse(name, "--diff: needs --compare and two folders with a comma between them")
        return inspect_checkpoint([args.dir])
    folders = [part.strip() for part in args.dir.split(",")]
    if len(folders) != 2 or not all(folders):
        _refuse(name, f"--compare: needs two folders with a comma between them, got {args.dir}")
    shown = [] if args.diff else ["--all"]
    return inspect_checkpoint([folders[0], "--diff", folders[1], *shown])


def _upload(arguments: Sequence[str]) -> int:
    """Uploads; takes GPT-NeoX's three words too, of which the branch can only be ``main``."""
    from tools.upload import main as upload

    name = "upload.py"
    if len(arguments) in (2, 3) and not any(word.startswith("-") for word in arguments):
        folder, repository, *branch = arguments
        if branch not in ([], ["main"]):
            _refuse(
                name,
                f"uploads go to the branch main, not to {branch[0]!r}; upload there, then make "
                "the branch from it on the Hub",
            )
        arguments = [folder, "--repo_id", repository]
    upload(arguments)
    return 0


DOORS: dict[str, Callable[[Sequence[str]], int]] = {
    "convert_hf_llama_to_neox.py": _import_llama,
    "convert_hf_to_sequential.py": _import_pythia,
    "inspect_checkpoints.py": _inspect,
    "upload.py": _upload,
    **{
        name: _refusal(name, answer)
        for name, answer in (
            (
                "merge20b.py",
                "nothing has to be merged: load: FOLDER takes a checkpoint of GPT-NeoX with any "
                "number of parts, and python tools/checkpoints/import_neox.py FOLDER --config "
                "configs/20B.yml -o OUTPUT makes one of this program",
            ),
            (
                "convert_raw_llama_weights_to_neox.py",
                f"Meta's own files are not read; convert them with {_META}, then run python "
                "tools/convert_from_hf.py --input_dir CONVERTED --output_dir OUTPUT",
            ),
            (
                "convert_neox_to_mamba_ssm.py",
                "Mamba is not part of this version, so there is nothing to convert; use GPT-NeoX",
            ),
        )
    },
}
"""Name of a file -> what it does with the words of the command line; returns the exit code."""
