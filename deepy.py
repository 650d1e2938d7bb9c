#!/usr/bin/env python
"""Starts a script on every process of a run: ``./deepy.py train.py configs/125M.yml more.yml``.

Loads neither torch nor deepspeed; see ``megatron/launcher/command.py``.
"""

import sys

from megatron.launcher.installation import explain_missing_packages

if __name__ == "__main__":
    explain_missing_packages()
    from megatron.launcher.command import main

    sys.exit(main())
