"""Where and how processes are started."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from ..declarations import ONLY_TRAINING, Bound, above, at_least, at_most, between
from ..hostfile import MOST_SLOTS, is_host_name

_YEAR_MINUTES = 525_600
_IS_ADDRESS = Bound("a name or an address", lambda text: not text or is_host_name(text))


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Machines, processes and what else a launcher needs; randomness."""

    user_script: str | None = None
    """Script that `deepy.py` starts."""

    hostfile: str | None = None
    """File of lines `host slots=N`. A file that is not there means this machine alone. The
    environment variable DLTS_HOSTFILE is used when this is not set."""

    include: str | None = None
    """Hosts and slots to use, as in `host1@host2:0,2`. Not together with `exclude`."""

    exclude: str | None = None
    """Hosts and slots to leave out, written like `include`."""

    num_nodes: Annotated[int, Bound("at least 1, or -1 for all", lambda n: n == -1 or n > 0)] = -1
    """Hosts to take from the top of the hostfile. -1 takes all."""

    num_gpus: Annotated[int | None, between(1, MOST_SLOTS, "remove it to use all GPUs")] = None
    """Processes on each machine. On a machine without GPUs: CPU processes."""

    master_port: Annotated[int, between(1, 65535)] = 29500
    """TCP port where the processes of a run meet. `deepy.py` finds a free one when this is not set;
    ranks that mpirun or srun started derive one from the number of their job."""

    master_addr: Annotated[str | None, _IS_ADDRESS] = None
    """Address of the first machine. Found from the hostfile or the environment when not set."""

    launcher: Literal["pdsh", "openmpi", "mvapich", "slurm", "mpich", "impi"] = "pdsh"
    """What starts processes on several machines: `pdsh` is `deepy.py` itself, over ssh; the others
    become a command of that launcher, which `--dry-run` prints. One machine needs none."""

    force_multi: bool = False
    """Uses the launcher for several machines even for a single remote one."""

    no_ssh_check: bool = False
    """Waits without a limit for machines that do not answer over ssh. Otherwise the start fails
    after 60 s, before any rank has started."""

    comment: str | None = None
    """Text for Slurm's `--comment`."""

    account: str | None = None
    """Account to charge, for Slurm's `--account`."""

    distributed_backend: Literal["nccl", "gloo", "mpi", "ccl", "hccl"] | None = None
    """Backend of torch.distributed, one that this PyTorch has. Not set: nccl on GPUs, gloo on CPUs;
    on CPUs nccl is read as gloo."""

    distributed_timeout_minutes: Annotated[float, above(0), at_most(_YEAR_MINUTES)] = 10.0
    """Minutes after which a collective operation that does not finish ends the run. Until the first
    iteration is done, which may load a model and index data, three times as long."""

    seed: Annotated[int, at_least(1)] = 1234
    """Seed of all random numbers, at least 1."""

    torch_compile: Annotated[bool | Literal["auto"], ONLY_TRAINING] = "auto"
    """Compiles the blocks and the loss with torch's Inductor, so that each pass over memory does
    more; the first iteration takes longer, and losses differ in their last digits. `auto`: on GPUs,
    where the machine and the configuration allow it. true: on every device. Not with
    `model_parallel_size` above 1, ZeRO 3, `flops_profiler`, windows, `alibi`, `rpe` or
    `reset_attention_mask`."""

    neox_compat: Literal["odm2024"] | None = None
    """Defaults of another code base for keys that are not set. `odm2024`: those of the research
    code of Online Data Mixing (weight decay 0.01, dropout 0.1, no gradient clipping,
    `weighted_sampler_alpha` 0.3)."""

    deepspeed_extra_args: dict[str, Any] | None = None
    """More keys for DeepSpeed's configuration, added as they are; only such as have no key of their
    own here. A secret, as `comet.api_key`, is better written `${COMET_API_KEY}`, which takes it
    from the environment; what a run writes never holds one."""


class LaunchKeys:
    """Keys that decide fields of `Launch` together."""

    deepspeed: Annotated[bool, Bound("true", bool, "it is the engine; remove the key")] = True
    """Always true: the engine is DeepSpeed's."""

    config_files: dict[str, str] | None = None
    """Texts of the files of this configuration by name, kept for the checkpoint. Set by the
    program."""
