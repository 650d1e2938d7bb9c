#!/usr/bin/env python
"""A command of GPT-NeoX: prints what to do instead."""

import sys
from pathlib import Path

if __package__ in (None, ""):  # started as a file: the packages are two folders up
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from megatron.launcher.installation import explain_missing_packages

    explain_missing_packages()

from tools.ckpts.doors import refuse

__all__ = ["main"]


def main() -> None:
    """Ends with exit code 2."""
    refuse("convert_neox_to_mamba_ssm.py")


if __name__ == "__main__":
    main()
