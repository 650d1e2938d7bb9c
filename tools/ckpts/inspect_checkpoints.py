#!/usr/bin/env python
"""GPT-NeoX's command to look into checkpoints: `tools/inspect_checkpoint.py`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # started as a file: the packages are two folders up
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from megatron.launcher.installation import explain_missing_packages

    explain_missing_packages()

from tools.ckpts.doors import refuse
from tools.inspect_checkpoint import main as inspect_checkpoint

__all__ = ["main"]

_NAME = "inspect_checkpoints.py"


def main(input_args: Sequence[str] | None = None) -> int:
    """Shows a checkpoint, or compares two with a comma between them; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dir", help="folder of a checkpoint; with --compare two, with a comma")
    parser.add_argument("--attributes", nargs="*", help="not supported")
    parser.add_argument("--interactive", "-i", action="store_true", help="not supported")
    parser.add_argument("--compare", "-c", action="store_true", help="compare two checkpoints")
    parser.add_argument("--diff", "-d", action="store_true", help="show only what differs")
    args = parser.parse_args(input_args)
    if args.attributes or args.interactive:
        flag = "--interactive" if args.interactive else "--attributes"
        refuse(_NAME, f"{flag} is not supported; python tools/inspect_checkpoint.py FOLDER --json")
    if not args.compare:
        return inspect_checkpoint([args.dir])
    folders = [part.strip() for part in args.dir.split(",")]
    if len(folders) != 2:
        refuse(_NAME, f"--compare needs two folders with a comma between them, got {args.dir}")
    shown = [] if args.diff else ["--all"]
    return inspect_checkpoint([folders[0], "--diff", folders[1], *shown])


if __name__ == "__main__":
    sys.exit(main())
