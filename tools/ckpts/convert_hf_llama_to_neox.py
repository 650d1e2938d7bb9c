#!/usr/bin/env python
"""GPT-NeoX's command to import a Llama: `tools/convert_from_hf.py` on a downloaded folder."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.ckpts.doors import run

if __name__ == "__main__":
    run(Path(__file__).name)
