#!/usr/bin/env python
"""The name that GPT-NeoX users know for `tools/convert_to_hf.py`."""

import sys
from pathlib import Path

if __package__ in (None, ""):  # started as a file: the packages are two folders up
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from megatron.launcher.installation import explain_missing_packages

    explain_missing_packages()

from tools.convert_to_hf import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
