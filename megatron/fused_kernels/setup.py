"""GPT-NeoX's ``python megatron/fused_kernels/setup.py install``: there is nothing to install."""

import sys
from pathlib import Path

if __package__ in (None, ""):  # started as a file: the packages are two folders up
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron.fused_kernels import load

__all__ = ["load"]

if __name__ == "__main__":
    load()
