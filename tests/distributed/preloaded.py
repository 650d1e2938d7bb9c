"""What the fork server loads: the modules of a training rank, with the variables of one."""

from __future__ import annotations

import os

from megatron.runtime import accelerator

os.environ["OMP_NUM_THREADS"] = "1"
accelerator.prepare_environment()

import megatron.training  # noqa: E402, F401
