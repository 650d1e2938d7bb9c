"""Processes, seeds and what a launcher sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class NeoXArgsOther:
    """Distributed start-up, randomness, presets and fields that a program sets."""

    neox_compat: Literal["odm2024"] | None = None
    """Defaults of another code base for keys that are not set. `odm2024`: those of the research
    code of Online Data Mixing (weight decay 0.01, dropout 0.1, no gradient clipping,
    `weighted_sampler_alpha` 0.3)."""

    distributed_backend: Literal["nccl", "gloo", "mpi", "ccl", "hccl"] | None = None
    """Backend of torch.distributed, one that this PyTorch has. Not set: nccl on GPUs, gloo on CPUs;
    on CPUs nccl is read as gloo."""

    distributed_timeout_minutes: float = 30.0
    """Minutes after which a collective operation that does not finish ends the run."""

    eod_mask_loss: bool = False
    """Leaves out the loss at positions whose input token ends a document. Loss and gradient are
    means over the tokens of the global batch that are left, whatever the layout and accumulation;
    in GPT-NeoX they are means of the means of micro-batches."""

    seed: int = 1234
    """Seed of all random numbers, at least 1."""

    user_script: str | None = None
    """Script that `deepy.py` starts."""

    iteration: int | None = None
    """Checkpoint to load, by its iteration. Not set: the latest."""

    save_iters: list[int] | None = None
    """Old name of `extra_save_iters`."""

    global_num_gpus: int | None = None
    """Processes of the whole run, where neither a launcher nor a hostfile says it."""
