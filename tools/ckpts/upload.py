#!/usr/bin/env python
"""GPT-NeoX's command to upload a model: `tools/upload.py FOLDER --repo_id NAME`.

GPT-NeoX's form works too: upload.py FOLDER NAME main.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # started as a file: the packages are two folders up
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from megatron.launcher.installation import explain_missing_packages

    explain_missing_packages()

from tools.ckpts.doors import refuse
from tools.upload import main as upload

__all__ = ["main"]


def main(input_args: Sequence[str] | None = None) -> None:
    """Uploads; GPT-NeoX's third word, a branch, can only be ``main``."""
    args = list(sys.argv[1:] if input_args is None else input_args)
    if len(args) in (2, 3) and not any(arg.startswith("-") for arg in args):
        folder, name, *branch = args
        if branch not in ([], ["main"]):
            refuse(
                "upload.py",
                f"uploads go to the branch main, not to {branch[0]!r}; make the branch on the hub",
            )
        args = [folder, "--repo_id", name]
    upload(args)


if __name__ == "__main__":
    main()
