#!/usr/bin/env python
"""GPT-NeoX's command to import a Llama: `tools/convert_from_hf.py` on a downloaded folder."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # started as a file: the packages are two folders up
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from megatron.launcher.installation import explain_missing_packages

    explain_missing_packages()

from tools.ckpts.doors import import_model

__all__ = ["main"]


def main(input_args: Sequence[str] | None = None) -> None:
    """Imports ``--model`` if it is a folder; else ends with exit code 2 and the way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder, or a name on the hub")
    parser.add_argument("--model_path", help="folder of the run to make")
    parser.add_argument("--tp", type=int, help="not used: a checkpoint loads on any layout")
    parser.add_argument("--pp", type=int, help="not used: a checkpoint loads on any layout")
    args = parser.parse_args(input_args)
    unused = [flag for flag, n in (("--tp", args.tp), ("--pp", args.pp)) if n is not None]
    import_model("convert_hf_llama_to_neox.py", args.model, args.model_path, unused=unused)


if __name__ == "__main__":
    main()
