#!/usr/bin/env python
"""The name under which GPT-NeoX users know `evaluate`."""

from __future__ import annotations

if __name__ == "__main__":
    from megatron.launcher.installation import explain_missing_packages

    explain_missing_packages()

from evaluate import main
from megatron.runtime.entry_point import run_program

__all__ = ["main"]

if __name__ == "__main__":
    run_program(main)
