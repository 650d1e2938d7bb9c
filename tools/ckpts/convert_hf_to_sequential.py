#!/usr/bin/env python
"""GPT-NeoX's command to import Pythia: `tools/convert_from_hf.py` on a downloaded folder."""

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
    """Imports ``--hf-model-name`` if it is a folder; else ends with exit code 2 and the way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hf-model-name", required=True, help="folder, or a name of EleutherAI's")
    parser.add_argument("--output-dir", help="folder of the run to make")
    parser.add_argument("--revision", help="not used: download this revision")
    parser.add_argument("--config", nargs="*", help="not used: a YAML file is written")
    parser.add_argument("--cache-dir", help="not used")
    parser.add_argument("--ckpt-tmp-dir", help="not used")
    parser.add_argument("--test", action="store_true", help="not used")
    parser.add_argument("--download-only", action="store_true", help="not used")
    args = parser.parse_args(input_args)
    name = args.hf_model_name
    if not Path(name).is_dir() and "/" not in name:
        name = f"EleutherAI/{name}"
    given = {"--revision": args.revision, "--config": args.config, "--cache-dir": args.cache_dir}
    unused = [flag for flag, value in given.items() if value]
    import_model("convert_hf_to_sequential.py", name, args.output_dir, unused=unused)


if __name__ == "__main__":
    main()
