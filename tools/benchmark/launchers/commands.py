"""How each launcher starts `train.py` on two machines; docs/clusters.md shows the same lines."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .machines import NAMES
from .services import has_slurm, has_ssh

__all__ = ["LAUNCHERS", "SBATCH", "Launcher", "Stop"]

SBATCH = """\
#!/bin/bash
#SBATCH --nodes=2 --ntasks-per-node=1 --cpus-per-task=1
#SBATCH --time=00:06:00 --signal=TERM@60 --requeue
srun --kill-on-bad-exit=1 python train.py {config}
"""


@dataclass(frozen=True)
class Stop:
    """How a run is asked to stop."""

    name: str
    command: tuple[str, ...] | None = None
    """With `{job}`; None: a signal to the launcher. Empty: nothing, time runs out."""
    number: signal.Signals = signal.SIGTERM
    """The signal, if there is no command."""
    returns: bool = False
    """The launcher starts the run again by itself."""


@dataclass(frozen=True)
class Launcher:
    """A launcher, as a row of the table."""

    name: str
    programs: tuple[str, ...]
    """What must be installed: names of programs, and `ssh` or `slurm` for services."""
    commands: Callable[[Path], Sequence[Sequence[str]]]
    """Command lines by machine for a configuration file; one for the first machine is enough."""
    process: str
    """A word in the command line of the launcher's process that the trial kills."""
    stop: Stop = Stop("SIGTERM")
    is_short: bool = False
    """Tries the stop and the restart alone."""


def _torchrun(config: Path, nodes: int) -> list[list[str]]:
    endpoint = [f"--rdzv_endpoint={NAMES[0]}:29500", "--rdzv_backend=c10d", "--rdzv_id=trial"]
    return [
        [
            *("torchrun", f"--nnodes={nodes}", f"--nproc_per_node={2 // nodes}"),
            *(endpoint if nodes > 1 else ["--standalone"]),
            *("train.py", str(config)),
        ]
        for _ in range(nodes)
    ]


def _deepy(config: Path) -> list[list[str]]:
    return [[sys.executable, "deepy.py", "train.py", str(config)]]


def _deepy_hosts(launcher: str) -> Callable[[Path], list[list[str]]]:
    def commands(config: Path) -> list[list[str]]:
        hostfile = config.with_name("hostfile")
        hostfile.write_text("".join(f"{name} slots=1\n" for name in NAMES))
        extra = config.with_name("launcher.yml")
        extra.write_text(f'{{"launcher": "{launcher}"}}\n')
        return [
            [sys.executable, "deepy.py", "-H", str(hostfile), "train.py", str(config), str(extra)]
        ]

    return commands


def _openmpi(config: Path) -> list[list[str]]:
    hosts = ",".join(f"{name}:1" for name in NAMES)
    return [
        [
            *("mpirun.openmpi", "--allow-run-as-root", "-np", "2", "--host", hosts),
            *("-x", f"MASTER_ADDR={NAMES[0]}", "-x", "PATH", "-x", "DS_ACCELERATOR"),
            *("-x", "OMP_NUM_THREADS", sys.executable, "train.py", str(config)),
        ]
    ]


def _mpich(config: Path) -> list[list[str]]:
    return [
        [
            *("mpirun.mpich", "-np", "2", "-ppn", "1", "-hosts", ",".join(NAMES)),
            *(sys.executable, "train.py", str(config)),
        ]
    ]


def _srun(config: Path) -> list[list[str]]:
    options = ["--nodes=2", "--ntasks-per-node=1", "--time=10", "--kill-on-bad-exit=1"]
    return [["srun", *options, sys.executable, "train.py", str(config)]]


def _sbatch(config: Path) -> list[list[str]]:
    script = config.with_name("job.sh")
    script.write_text(SBATCH.format(config=config))
    output = f"--output={config.with_name('output.txt')}"
    return [["sbatch", "--wait", "--open-mode=append", output, str(script)]]


_USR1 = Stop("SIGUSR1", number=signal.SIGUSR1)  # after SIGTERM mpirun gives ranks one second
_SCANCEL = Stop("scancel", ("scancel", "{job}"))
_REQUEUE = Stop("scontrol requeue", ("scontrol", "requeue", "{job}"), returns=True)
_TIME = Stop("time limit", ())

LAUNCHERS = (
    Launcher("deepy.py, one machine", (), _deepy, "deepy.py"),
    Launcher("torchrun, one machine", ("torchrun",), lambda c: _torchrun(c, 1), "torchrun"),
    Launcher("torchrun, two machines", ("torchrun",), lambda c: _torchrun(c, 2), "torchrun"),
    Launcher("Open MPI", ("mpirun.openmpi", "ssh"), _openmpi, "mpirun.openmpi", stop=_USR1),
    Launcher("MPICH", ("mpirun.mpich", "ssh"), _mpich, "mpirun.mpich"),
    Launcher("srun", ("slurm",), _srun, "srun", stop=_SCANCEL),
    Launcher("sbatch, scancel", ("slurm",), _sbatch, "srun", stop=_SCANCEL),
    Launcher("sbatch, requeue", ("slurm",), _sbatch, "srun", stop=_REQUEUE, is_short=True),
    Launcher("sbatch, time limit", ("slurm",), _sbatch, "srun", stop=_TIME, is_short=True),
    Launcher("deepy.py -H, ssh", ("ssh",), _deepy_hosts("pdsh"), "deepy.py"),
    Launcher(
        "deepy.py -H, openmpi", ("mpirun.openmpi", "ssh"), _deepy_hosts("openmpi"), "deepy.py"
    ),
    Launcher("deepy.py -H, mpich", ("mpirun.mpich", "ssh"), _deepy_hosts("mpich"), "mpirun"),
    Launcher("deepy.py -H, slurm", ("slurm",), _deepy_hosts("slurm"), "srun", stop=_SCANCEL),
)
"""The first one is the reference of all others."""


def missing_program(launcher: Launcher, path: str) -> str | None:
    """What a launcher needs and this machine lacks, or None."""
    for name in launcher.programs:
        is_there = {"ssh": has_ssh, "slurm": has_slurm}.get(
            name, lambda name=name: shutil.which(name, path=path) is not None
        )
        if not is_there():
            package = {"ssh": "openssh-server", "slurm": "slurm-wlm"}.get(name, name)
            return f"{package} is not installed"
    return None
