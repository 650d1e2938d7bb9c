"""Brings a process into a run: life, device, process group, threads and seeds."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from megatron.launcher.pmi import meet_by_hydra
from megatron.launcher.rank_discovery import RankInfo, discover
from megatron.neox_arguments import ConfigError
from megatron.reporting.run_logger import print_rank_0
from megatron.runtime import accelerator
from megatron.runtime.process_life import bind_to_launcher, handle_stop_signals, stop_requested
from megatron.runtime.rendezvous_store import (
    has_own_store,
    loopback_store,
    network_note,
    require_names,
)

__all__ = [
    "START_FACTOR",
    "initialize_megatron",
    "prepare_process",
    "set_timeout_on_all_groups",
    "shutdown",
    "stop_requested",
]

START_FACTOR = 3
"""How many times ``distributed_timeout_minutes`` a run may wait before its first step is made."""


def prepare_process() -> RankInfo:
    """Does what must come before deepspeed is imported and depends on the environment alone.

    The process will not outlive its launcher, knows its rank, and has the variables that torch and
    DeepSpeed read. May be called more than once.

    Raises:
        RankDiscoveryError: If the environment contradicts itself.
    """
    bind_to_launcher()
    os.environ.update(meet_by_hydra(os.environ))
    info = discover(os.environ)
    os.environ.update(info.variables())
    # DeepSpeed makes a shared-memory segment for each rank, and never removes it, where this is set
    os.environ.pop("LOCAL_SIZE", None)
    accelerator.prepare_environment()
    if info.is_on_loopback and Path("/sys/class/net/lo").exists():
        # gloo otherwise looks its own host name up, and a name without an address ends the run;
        # and what listens elsewhere can be reached from other machines
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, "lo")
    return info


def initialize_megatron(config: Any, *, handle_signals: bool = True) -> RankInfo:
    """Joins the run that ``config`` describes.

    Args:
        config: The ``RunConfig``; reads ``other.seed``, ``other.distributed_backend`` and
            ``other.distributed_timeout_minutes``.
        handle_signals: Turns SIGTERM and SIGINT into a request that `stop_requested` returns, for
            programs that check it. Other programs end at once.

    Returns:
        This process's place in the run.

    Raises:
        RankDiscoveryError: If the environment contradicts itself.
        ConfigError: If this PyTorch does not have the backend that is asked for.
    """
    info = prepare_process()
    if handle_signals:
        handle_stop_signals()
    if accelerator.is_cpu():
        accelerator.keep_freed_memory()
        accelerator.flush_subnormals()
    _set_threads(info)
    _quiet_deepspeed()
    accelerator.set_device(info.local_rank)
    _join(info, config.launch.distributed_backend, config.launch.distributed_timeout_minutes)
    accelerator.seed_everything(config.launch.seed)
    return info


def set_timeout_on_all_groups(config: Any, *, is_start: bool = False) -> None:
    """Gives every process group the timeout ``distributed_timeout_minutes``.

    Call it after ``deepspeed.initialize``. The groups that DeepSpeed makes start with torch's 30
    minutes, whatever ``init_distributed`` got, and a rank that hangs blocks the others that long.

    Args:
        config: The ``RunConfig``.
        is_start: Until the first step is made, which may compile, index data and load a model: the
            timeout is `START_FACTOR` times as long.
    """
    from torch.distributed import distributed_c10d

    minutes = config.launch.distributed_timeout_minutes * (START_FACTOR if is_start else 1)
    for group in list(distributed_c10d._world.pg_map):
        distributed_c10d._set_pg_timeout(timedelta(minutes=minutes), group)


def shutdown() -> None:
    """Leaves the run without a barrier: a rank that leaves because of an error would hang there."""
    if "torch.distributed" not in sys.modules:
        return
    import torch.distributed

    accelerator.flush_subnormals(False)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # the run is over: a peer that left first is no error any more
        with contextlib.suppress(RuntimeError):
            torch.distributed.destroy_process_group()


def _set_threads(info: RankInfo) -> None:
    """Shares the cores out among the ranks of a machine; torch gives every rank all of them."""
    if not accelerator.is_cpu() or info.local_world_size == 1 or "OMP_NUM_THREADS" in os.environ:
        return
    import torch

    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    torch.set_num_threads(max(1, cores // info.local_world_size))


def _quiet_deepspeed() -> None:
    """Switches off DeepSpeed's shared-memory operator and its messages.

    The operator is for inference only, costs a compiler run of 30 s and leaks 66 MiB of /dev/shm
    for each rank and port.
    """
    with contextlib.redirect_stdout(sys.stderr):
        import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)


def _join(info: RankInfo, backend: str | None, timeout_minutes: float) -> None:
    import deepspeed
    import torch.distributed

    if torch.distributed.is_initialized():
        return
    if backend is None or (accelerator.is_cpu() and backend == "nccl"):
        backend = accelerator.backend()  # nccl, the default of old files, has no CPU form
    if not torch.distributed.is_backend_available(backend):
        raise ConfigError(
            f"distributed_backend: this PyTorch has no backend {backend}; remove the key to "
            f"use {accelerator.backend()}"
        )
    timeout = timedelta(minutes=timeout_minutes * START_FACTOR)
    if has_own_store(info):
        is_nccl = backend == "nccl" and info.world_size > 1  # as DeepSpeed has it
        torch.distributed.init_process_group(
            backend,
            store=loopback_store(info, timeout=timeout),
            rank=info.rank,
            world_size=info.world_size,
            timeout=timeout,
            device_id=accelerator.device(info.local_rank) if is_nccl else None,
        )
    else:
        if info.world_size > info.local_world_size:
            require_names(info, os.environ, uses_gloo=backend == "gloo")
        print_rank_0(f"note: {network_note(info, os.environ)}")
    deepspeed.init_distributed(  # takes over a process group that is there
        dist_backend=backend,
        auto_mpi_discovery=False,
        verbose=False,
        timeout=timeout,
        rank=info.rank,
        world_size=info.world_size,
    )
