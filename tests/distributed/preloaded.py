"""What the fork server loads: the modules of a training rank, with the variables of one."""

from __future__ import annotations

import importlib
import os

from megatron.runtime import accelerator

os.environ["OMP_NUM_THREADS"] = "1"
accelerator.prepare_environment()

for name in (
    "megatron.training",
    # what torch's and DeepSpeed's optimizers load when the first one is made
    "torch._dynamo",
    "deepspeed.runtime.zero.muon.muon_optimizer",
):
    importlib.import_module(name)

_ = importlib.import_module("deepspeed.ops").__compatible_ops__  # asks a compiler
