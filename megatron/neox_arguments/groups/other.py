"""Processes, seeds and what a launcher sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


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

    local_rank: int | None = None
    """Rank on this machine. Set by the launcher's environment."""

    rank: int | None = None
    """Rank in the run. Set by the launcher's environment."""

    lazy_mpu_init: bool = False
    """Megatron's hook for an outside manager. Refused."""

    short_seq_prob: float = 0.1
    """Unused in GPT-NeoX, and here."""

    eod_mask_loss: bool = False
    """Leaves out the loss at positions whose input token ends a document. Loss and gradient are
    means over the tokens of the global batch that are left, whatever the layout and accumulation;
    in GPT-NeoX they are means of the means of micro-batches."""

    adlr_autoresume: bool = False
    """Auto-resume of one company's cluster. Refused; SIGTERM saves and stops everywhere."""

    adlr_autoresume_object: Any = None
    """A running program's object in GPT-NeoX. Cannot be set in a file."""

    adlr_autoresume_interval: int = 1000
    """Belongs to `adlr_autoresume`."""

    seed: int = 1234
    """Seed of all random numbers, at least 1."""

    fused_kernels_build_path: str | None = None
    """Where GPT-NeoX compiles its kernels. A hint."""

    onnx_safe: bool = False
    """Workarounds for an ONNX exporter. A hint."""

    deepscale: bool = False
    """Old name of DeepSpeed; unused."""

    deepscale_config: str | None = None
    """Old name of DeepSpeed; unused."""

    deepspeed_mpi: bool = False
    """Reads ranks from an MPI environment. Always tried; this only asks for it by name."""

    deepspeed_slurm: bool = False
    """Reads ranks from a Slurm environment. Always tried; this only asks for it by name."""

    user_script: str | None = None
    """Script that `deepy.py` starts."""

    iteration: int | None = None
    """Checkpoint to load, by its iteration. Not set: the latest."""

    do_train: bool | int | None = None
    """Computed from `train_iters`; what is written here is not read."""

    do_valid: bool | int | None = None
    """Computed from `eval_iters`; what is written here is not read."""

    do_test: bool | int | None = None
    """Computed from `eval_iters`; what is written here is not read."""

    save_iters: list[int] | None = None
    """Old name of `extra_save_iters`."""

    global_num_gpus: int | None = None
    """Processes of the whole run, where neither a launcher nor a hostfile says it."""
