"""The place where GPT-NeoX keeps ``tools/merge_datasets.py``."""

import sys
from pathlib import Path

if __package__ in (None, ""):  # started as a file: the packages are two folders up
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from megatron.launcher.installation import explain_missing_packages

    explain_missing_packages()

from megatron.tokenizer.command_line import exit_code
from tools.merge_datasets import get_parser, main, merge_datasets

__all__ = ["get_parser", "main", "merge_datasets"]

if __name__ == "__main__":
    sys.exit(exit_code(main))
