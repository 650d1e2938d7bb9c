#!/usr/bin/env python
"""Starts a script on every process of a run: ``./deepy.py train.py configs/125M.yml more.yml``.

Loads neither torch nor deepspeed; see ``megatron/launcher/command.py``.
"""

import sys

from megatron.launcher.installation import missing_packages_problem

if __name__ == "__main__":
    if problem := missing_packages_problem("yaml"):  # the next line would need it
        sys.stderr.write(problem + "\n")
        sys.exit(2)
    from megatron.launcher.command import main

    sys.exit(main())
