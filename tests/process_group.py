"""A process group of one, for tests of code that talks to other ranks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

__all__ = ["engine_of_one", "process_group_of_one"]


@contextmanager
def process_group_of_one() -> Iterator[None]:
    """Makes the group and destroys it; one that another test file has left serves as well."""
    if dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def engine_of_one(config: Any) -> Iterator[None]:
    """Joins a run of one rank as programs do, for tests that build DeepSpeed's engine."""
    import deepspeed.comm.comm as deepspeed_communication

    from megatron.runtime.initialize import initialize_megatron, shutdown

    before = deepspeed_communication.cdb, dict(os.environ)
    initialize_megatron(config, handle_signals=False)
    try:
        yield
    finally:
        shutdown()
        deepspeed_communication.cdb = before[0]
        os.environ.clear()
        os.environ.update(before[1])
