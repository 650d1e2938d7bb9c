"""`tools/preprocess_data.py` under the path of newer GPT-NeoX versions."""

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a file: the repository root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from megatron.launcher.installation import explain_missing_packages

    explain_missing_packages()

from megatron.tokenizer.command_line import exit_code
from tools.preprocess_data import get_args, main

__all__ = ["get_args", "main"]

if __name__ == "__main__":
    sys.exit(exit_code(main))
