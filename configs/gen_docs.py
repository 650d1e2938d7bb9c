#!/usr/bin/env python
"""Writes configs/neox_arguments.md, the reference of all keys; with --check only compares it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):  # started as a file: the packages are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from megatron.launcher.installation import explain_missing_packages

    explain_missing_packages()

from megatron.files import write_text_atomic
from megatron.neox_arguments.documentation import reference_markdown

TARGET = Path(__file__).resolve().parent / "neox_arguments.md"


def main() -> int:
    """Returns 0, or 1 when ``--check`` finds the file out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail when the file is out of date")
    check = parser.parse_args().check
    text = reference_markdown()
    if check:
        if TARGET.is_file() and TARGET.read_text(encoding="utf-8") == text:
            return 0
        sys.stderr.write(f"{TARGET.name} is out of date; run python configs/gen_docs.py\n")
        return 1
    write_text_atomic(TARGET, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
