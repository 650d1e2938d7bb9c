"""Where a run is launched: hosts, slots, ports and the launcher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class NeoXArgsDeepspeedRunner:
    """Machines and processes: what `deepy.py` hands to the launcher."""

    hostfile: str | None = None
    """File of lines `host slots=N`. A file that is not there means this machine alone. The
    environment variable DLTS_HOSTFILE is used when this is not set."""

    include: str | None = None
    """Hosts and slots to use, as in `host1@host2:0,2`. Not together with `exclude`."""

    exclude: str | None = None
    """Hosts and slots to leave out, written like `include`."""

    num_nodes: int = -1
    """Hosts to take from the top of the hostfile. -1 takes all."""

    num_gpus: int | None = None
    """Processes on each machine. On a machine without GPUs: CPU processes."""

    master_port: int = 29500
    """TCP port where the processes of a run meet."""

    master_addr: str | None = None
    """Address of the first machine. Found from the hostfile or the environment when not set."""

    launcher: Literal["pdsh", "openmpi", "mvapich", "slurm", "mpich", "impi"] = "pdsh"
    """Program that starts processes on several machines. One machine needs none."""

    force_multi: bool = False
    """Uses the launcher for several machines even for a single remote one."""

    no_ssh_check: bool = False
    """Starts without testing that the first host answers to ssh."""

    comment: str | None = None
    """Text for Slurm's `--comment`."""

    account: str | None = None
    """Account to charge, for Slurm's `--account`."""
