#!/usr/bin/env python
"""Prepares datasets, one per domain, and the data YAML to train on them; see --help."""

import sys

if __name__ == "__main__":
    from megatron.launcher.installation import explain_missing_packages

    explain_missing_packages()

from megatron.tokenizer.command_line import exit_code
from tools.datasets.prepare import main

if __name__ == "__main__":
    sys.exit(exit_code(main))
