"""Who am I among the processes of a run? Read from the environment of the launcher; no torch.

Sources, first match wins: torchrun, DeepSpeed and our launcher (RANK), Open MPI (OMPI_*), MVAPICH
(MV2_*), MPICH and Intel MPI (PMI_*), a Slurm step (SLURM_*), none (one process). MPI comes before
Slurm because ``mpirun`` inside an allocation leaves Slurm's variables of *its own* step visible.
"""

from __future__ import annotations

import re
import socket
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from megatron.errors import UserError
from megatron.launcher.rendezvous import LOOPBACK, reserve_port
from odm.wording import counted

__all__ = ["RankDiscoveryError", "RankInfo", "discover", "expand_nodes", "local_counts"]

DEFAULT_PORT = 29500
_PORT_RANGE = (20000, 30000)  # below the kernel's range of ports for outgoing connections


class RankDiscoveryError(UserError):
    """The environment contradicts itself or lacks variables."""


@dataclass(frozen=True)
class RankInfo:
    """Place of this process in a run, and where its processes meet."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    master_address: str
    master_port: int
    source: str
    """``torchrun``, ``openmpi``, ``mvapich``, ``pmi``, ``slurm`` or ``single process``."""

    @property
    def is_on_loopback(self) -> bool:
        """Returns whether all ranks are on this machine and meet at its loopback interface."""
        is_one_machine = self.local_world_size == self.world_size
        return is_one_machine and self.master_address in (LOOPBACK, "localhost")

    def variables(self) -> dict[str, str]:
        """Returns what torch.distributed and DeepSpeed read.

        Not LOCAL_SIZE: DeepSpeed leaks shared memory with it.
        """
        return {
            "RANK": str(self.rank),
            "LOCAL_RANK": str(self.local_rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_WORLD_SIZE": str(self.local_world_size),
            "MASTER_ADDR": self.master_address,
            "MASTER_PORT": str(self.master_port),
        }


@dataclass(frozen=True)
class _Family:
    source: str
    rank: str
    size: str
    local_rank: str
    local_size: str
    job: tuple[str, ...]
    """Variables that are equal on all ranks of one job and differ between jobs."""


_MPI_FAMILIES = (
    _Family(
        "openmpi",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "OMPI_MCA_orte_ess_jobid"),
    ),
    _Family(
        "mvapich",
        "MV2_COMM_WORLD_RANK",
        "MV2_COMM_WORLD_SIZE",
        "MV2_COMM_WORLD_LOCAL_RANK",
        "MV2_COMM_WORLD_LOCAL_SIZE",
        ("MPISPAWN_MPIRUN_ID",),
    ),
    _Family(
        "pmi", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", ("HYDRA_BSTRAP_KEY",)
    ),
)


def discover(environ: Mapping[str, str]) -> RankInfo:
    """Finds this process's place in a run.

    Args:
        environ: The environment; not changed.

    Returns:
        The place. On one machine the master address is 127.0.0.1 unless MASTER_ADDR says
        otherwise; a lone process gets a free port, the same each time.

    Raises:
        RankDiscoveryError: If variables are missing, are no numbers or contradict each other.
    """
    if "RANK" in environ:
        info = _from_torchrun(environ)
    else:
        family = next((f for f in _MPI_FAMILIES if f.rank in environ), None)
        if family is not None:
            info = _from_mpi(family, environ)
        elif "SLURM_PROCID" in environ and (
            "SLURM_STEP_ID" in environ or "SLURM_STEPID" in environ
        ):
            # inside sbatch or salloc, but outside srun, SLURM_PROCID is 0 and means nothing
            info = _from_slurm(environ)
        else:
            _refuse_world_without_rank(environ)
            port = _number(environ, "MASTER_PORT") if "MASTER_PORT" in environ else _own_port()[1]
            info = RankInfo(
                0, 0, 1, 1, environ.get("MASTER_ADDR", LOOPBACK), port, "single process"
            )
    _check(info)
    return info


def _from_torchrun(environ: Mapping[str, str]) -> RankInfo:
    rank, size = _number(environ, "RANK"), _number(environ, "WORLD_SIZE")
    if "LOCAL_RANK" not in environ and size > 1:
        raise RankDiscoveryError(
            "LOCAL_RANK: not set beside RANK and WORLD_SIZE; set it, or start with torchrun"
        )
    local_rank = _number(environ, "LOCAL_RANK") if "LOCAL_RANK" in environ else 0
    address = environ.get("MASTER_ADDR")
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
        if name in environ:
            local_size = _number(environ, name)
            break
    else:
        local_size = size if address in (None, LOOPBACK, "localhost") else local_rank + 1
    address = address or _address_of_one_machine(size, local_size, "RANK")
    port = _number(environ, "MASTER_PORT") if "MASTER_PORT" in environ else DEFAULT_PORT
    return RankInfo(rank, local_rank, size, local_size, address, port, "torchrun")


def _from_mpi(family: _Family, environ: Mapping[str, str]) -> RankInfo:
    for other in _MPI_FAMILIES:
        if other.size in environ and _number(environ, other.size) != _number(environ, family.size):
            raise RankDiscoveryError(
                f"{family.size}={environ[family.size]} and {other.size}={environ[other.size]} "
                "contradict each other; one of them is left over from an outer job: unset it, or "
                "set RANK, LOCAL_RANK and WORLD_SIZE"
            )
    rank, size = _number(environ, family.rank), _number(environ, family.size)
    if family.local_rank in environ and family.local_size in environ:
        local_rank, local_size = (
            _number(environ, family.local_rank),
            _number(environ, family.local_size),
        )
    elif environ.get("SLURM_PROCID") == str(rank) and "SLURM_LOCALID" in environ:
        local_rank, local_size = _slurm_local(environ)  # srun --mpi=pmi2
    elif size == 1:
        local_rank, local_size = 0, 1
    else:
        raise RankDiscoveryError(
            f"{family.local_rank}: not set, so the rank on this machine is unknown; "
            "set RANK, LOCAL_RANK and WORLD_SIZE"
        )
    address = environ.get("MASTER_ADDR") or _address_of_one_machine(
        size, local_size, family.rank, environ
    )
    return RankInfo(
        rank,
        local_rank,
        size,
        local_size,
        address,
        _shared_port(environ, family.job),
        family.source,
    )


def _from_slurm(environ: Mapping[str, str]) -> RankInfo:
    size_name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
    rank, size = _number(environ, "SLURM_PROCID"), _number(environ, size_name)
    local_rank, local_size = _slurm_local(environ)
    address = environ.get("MASTER_ADDR") or _address_of_one_machine(
        size, local_size, "SLURM_PROCID", environ
    )
    port = _shared_port(environ, ("SLURM_JOB_ID", "SLURM_JOBID"), "SLURM_STEP_ID")
    return RankInfo(rank, local_rank, size, local_size, address, port, "slurm")


def _slurm_local(environ: Mapping[str, str]) -> tuple[int, int]:
    local_rank = _number(environ, "SLURM_LOCALID")
    text = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE")
    if text is None:
        return local_rank, local_rank + 1
    counts = local_counts(text)
    node = _number(environ, "SLURM_NODEID") if "SLURM_NODEID" in environ else 0
    if not 0 <= node < len(counts):
        raise RankDiscoveryError(f"SLURM_NODEID={node} is outside SLURM_TASKS_PER_NODE={text}")
    return local_rank, counts[node]


def local_counts(text: str) -> tuple[int, ...]:
    """Expands Slurm's list of tasks on each node: ``4(x2),3`` is (4, 4, 3)."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,6})(?:\(x([0-9]{1,6})\))?", part.strip())
        if match is None:
            raise RankDiscoveryError(
                f"SLURM_TASKS_PER_NODE: expected a list as 4(x2),3, got '{text}'"
            )
        counts += [int(match[1])] * int(match[2] or 1)
    return tuple(counts)


def expand_nodes(text: str) -> tuple[str, ...]:
    """Expands Slurm's list of nodes: ``a[08-10,12],b`` is (a08, a09, a10, a12, b).

    Raises:
        RankDiscoveryError: If the list has another form.
    """
    if not re.fullmatch(r"(?:[^\[\]]|\[[0-9]+(?:-[0-9]+)?(?:,[0-9]+(?:-[0-9]+)?)*\])+", text):
        raise RankDiscoveryError(
            f"SLURM_NODELIST: expected a list as a[08-10,12],b, got '{text}'; set MASTER_ADDR"
        )
    nodes: list[str] = []
    for part in re.findall(r"(?:[^,\[]+(?:\[[^\]]*\])?)+", text):
        nodes += _expand_brackets(part)
    return tuple(nodes)


def _expand_brackets(part: str) -> list[str]:
    match = re.search(r"\[([^\]]*)\]", part)
    if match is None:
        return [part]
    expanded: list[str] = []
    for piece in match[1].split(","):
        first, _, last = piece.partition("-")
        for number in range(int(first), int(last or first) + 1):
            name = f"{part[: match.start()]}{number:0{len(first)}d}{part[match.end() :]}"
            expanded += _expand_brackets(name)
    return expanded


def _address_of_one_machine(
    size: int, local_size: int, source: str, environ: Mapping[str, str] | None = None
) -> str:
    if size == local_size:
        return LOOPBACK  # a host name may resolve to an interface that a firewall closes
    environ = environ or {}
    nodes = (
        environ.get("SLURM_STEP_NODELIST")
        or environ.get("SLURM_JOB_NODELIST")
        or environ.get("SLURM_NODELIST")
    )
    if nodes:
        return expand_nodes(nodes)[0]
    raise RankDiscoveryError(
        f"MASTER_ADDR: not set, but {source} reports {counted(size, 'process', 'processes')}, "
        f"{local_size} of them on this machine; set MASTER_ADDR to the address of rank 0's "
        "machine, in all processes"
    )


def _shared_port(environ: Mapping[str, str], job: tuple[str, ...], step: str = "") -> int:
    """A port that is the same on all ranks of a job, and rarely the same for two jobs."""
    if "MASTER_PORT" in environ:
        return _number(environ, "MASTER_PORT")
    name = next((environ[key] for key in job if environ.get(key)), None)
    if name is None:
        return DEFAULT_PORT
    low, high = _PORT_RANGE
    return low + zlib.crc32(f"{name}.{environ.get(step, '')}".encode()) % (high - low)


def _refuse_world_without_rank(environ: Mapping[str, str]) -> None:
    if environ.get("WORLD_SIZE", "1") != "1":
        raise RankDiscoveryError(
            f"WORLD_SIZE={environ['WORLD_SIZE']} is set and RANK is not; unset it to run one "
            "process, or set RANK and LOCAL_RANK"
        )


def _check(info: RankInfo) -> None:
    if not 0 <= info.rank < info.world_size:
        raise RankDiscoveryError(
            f"{info.source}: rank {info.rank} is outside a run of "
            f"{counted(info.world_size, 'process', 'processes')}"
        )
    if not 0 <= info.local_rank < info.local_world_size:
        raise RankDiscoveryError(
            f"{info.source}: local rank {info.local_rank} is outside the {info.local_world_size} "
            "processes of this machine"
        )
    if info.local_world_size > info.world_size:
        raise RankDiscoveryError(
            f"{info.source}: {info.local_world_size} processes on this machine are more than the "
            f"{info.world_size} of the run"
        )
    if not 0 < info.master_port < 65536:
        raise RankDiscoveryError(
            f"MASTER_PORT: must be between 1 and 65535, got {info.master_port}"
        )


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name)
    if text is None:
        raise RankDiscoveryError(
            f"{name}: not set, though other variables of its launcher are; set it, or unset those"
        )
    try:
        return int(text)
    except ValueError:
        raise RankDiscoveryError(f"{name}: must be a whole number, got '{text}'") from None


@lru_cache(maxsize=1)
def _own_port() -> tuple[socket.socket, int]:
    """A free port of this process, and the socket that keeps others from it for its life.

    It takes seconds until the port is used, and another program might take it meanwhile.
    """
    return reserve_port(None, print)
