"""Commands of GPT-NeoX that another command here replaces: the answers, and the shared steps."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tools.convert_from_hf import main as convert_from_hf

__all__ = ["ANSWERS", "import_model", "refuse"]

_META = "convert_llama_weights_to_hf.py of the package transformers"

ANSWERS = {
    "merge20b.py": (
        "nothing has to be merged: load: FOLDER takes a checkpoint of GPT-NeoX with any number of "
        "parts, and python tools/checkpoints/import_neox.py FOLDER makes one of this program"
    ),
    "convert_raw_llama_weights_to_neox.py": (
        f"Meta's own files are not read; convert them with {_META}, then run python "
        "tools/convert_from_hf.py --input_dir CONVERTED --output_dir OUTPUT"
    ),
    "convert_neox_to_mamba_ssm.py": (
        "Mamba is not part of this version, so there is nothing to convert; use GPT-NeoX"
    ),
}
"""Command -> what to do instead, in one line."""


def refuse(command: str, answer: str = "") -> NoReturn:
    """Ends the program with exit code 2 and the answer, for a command that does nothing."""
    sys.stderr.write(f"{command}: {answer or ANSWERS[command]}\n")
    sys.exit(2)


def import_model(command: str, model: str, output: str | None, *, unused: Sequence[str]) -> None:
    """Imports a model folder of transformers; a name on the hub is answered by a download.

    Args:
        command: Name of the command, for messages.
        model: What the user calls the model.
        output: Folder of the run to make.
        unused: Flags of the user that have no effect, because checkpoints load on any layout.
    """
    if not Path(model).is_dir():
        folder = model.rpartition("/")[2]
        refuse(
            command,
            f"{model} is no folder; download it (hf download {model} --local-dir {folder}) and run "
            f"python tools/convert_from_hf.py --input_dir {folder} --output_dir "
            f"{output or 'OUTPUT'}",
        )
    if output is None:
        refuse(command, "names no folder to write; run python tools/convert_from_hf.py --help")
    if unused:
        print(f"{command}: {', '.join(unused)}: not used; a checkpoint loads on any layout")
    convert_from_hf(["--input_dir", model, "--output_dir", output])
