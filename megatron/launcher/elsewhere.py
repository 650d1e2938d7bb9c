"""Starts a run on the machines of a hostfile: over ssh, or with a launcher of their own."""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from megatron.launcher.native import native_command
from megatron.launcher.open_mpi import run_mpirun
from megatron.launcher.plan import LaunchPlan
from megatron.launcher.several_machines import ANSWER_SECONDS, SeveralMachines, ssh_command
from megatron.neox_arguments import ConfigError, NeoXArgs
from megatron.neox_arguments.errors import shown
from megatron.neox_arguments.neox_args import launch_values, script_arguments
from megatron.neox_arguments.schema import read_text

__all__ = ["exported", "orders_of", "run_elsewhere", "shown_elsewhere"]

_PREFIXES = (
    *("NCCL", "GLOO", "UCX", "PYTHON", "TORCH", "OMP_", "MKL_", "MV2", "CUDA_", "DS_", "HF_"),
    *("ODM_NEOX_", "WANDB_", "COMET_", "MLFLOW", "TOKENIZERS_"),
)
_NOT_EXPORTED = ("CUDA_VISIBLE_DEVICES",)  # slots choose; and other machines may count differently
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SETTINGS_FILE = ".deepspeed_env"


def exported(environ: Mapping[str, str], folders: tuple[Path, ...]) -> dict[str, str]:
    """Variables that reach the other machines: those of libraries, then lines of .deepspeed_env.

    Args:
        environ: The environment of this process.
        folders: Where files of that name are looked for, `NAME=value` per line; later ones win.

    Raises:
        ConfigError: For a line of another form.
    """
    found = {
        name: value
        for name, value in environ.items()
        if name.startswith(_PREFIXES) and name not in _NOT_EXPORTED
    }
    for folder in folders:
        path = folder / _SETTINGS_FILE
        if not path.is_file():
            continue
        lines = read_text(path, "file of variables").splitlines()
        for number, line in enumerate(lines, start=1):
            name, equals, value = line.strip().partition("=")
            if not line.strip() or name.startswith("#"):
                continue
            if not equals or not _NAME.fullmatch(name) or "\0" in value:
                # the value may be a secret
                raise ConfigError(f"{path}:{number}: must be NAME=value, got {shown(name)}")
            found[name] = value
    return found


def run_elsewhere(
    arguments: NeoXArgs, plan: LaunchPlan, grace_seconds: float, report: Callable[[str], None]
) -> int:
    """Starts the run and waits for it; Hydra and Slurm take this process's place.

    Raises:
        UserError: If nothing here can start it, or a machine does not answer.
    """
    values = launch_values(arguments)
    if values["launcher"] != "pdsh":
        argv = _native(arguments, plan, values)
        environ = {**os.environ, **_exported_here()}
        if values["launcher"] == "openmpi":
            return run_mpirun(argv, environ, grace_seconds=grace_seconds)
        os.execvpe(argv[0], argv, environ)
    if shutil.which("ssh") is None:
        raise ConfigError(
            f"launcher: pdsh cannot start processes on {', '.join(plan.hosts)}: there is no "
            "program ssh here; install it, or set launcher to openmpi, mpich or slurm",
            key="launcher",
        )
    return SeveralMachines(
        orders_of(arguments, plan, grace_seconds),
        command=lambda host: ssh_command(host, os.environ),
        grace_seconds=grace_seconds,
        report=report,
        master_address=values["master_addr"] or os.environ.get("MASTER_ADDR"),
        answer_seconds=math.inf if values["no_ssh_check"] else ANSWER_SECONDS,
    ).run()


def orders_of(
    arguments: NeoXArgs, plan: LaunchPlan, grace_seconds: float
) -> dict[str, dict[str, Any]]:
    """What `megatron.launcher.machine` gets, by host."""
    values = launch_values(arguments)
    given_port = values["master_port"] if "master_port" in arguments.given else None
    variables = _exported_here()
    orders: dict[str, dict[str, Any]] = {}
    first_rank = 0
    for host, slots in plan.hosts.items():
        orders[host] = {
            "script": arguments.user_script,
            "config": arguments.megatron_config,
            "environ": variables,
            "slots": list(slots),
            "first_rank": first_rank,
            "world_size": plan.num_processes,
            "master_port": given_port,
            "grace_seconds": grace_seconds,
        }
        first_rank += len(slots)
    return orders


def shown_elsewhere(arguments: NeoXArgs, plan: LaunchPlan) -> str:
    """The commands of a dry run, and where the ranks would be."""
    values = launch_values(arguments)
    if values["launcher"] != "pdsh":
        return shlex.join(_native(arguments, plan, values)) + "\n"
    lines = [shlex.join(ssh_command(host, os.environ)) for host in plan.hosts]
    for host, order in orders_of(arguments, plan, 0.0).items():
        first, slots = order["first_rank"], order["slots"]
        ranks = f"{first} to {first + len(slots) - 1}" if len(slots) > 1 else str(first)
        lines.append(f"{host}: ranks {ranks} on slots {','.join(map(str, slots))}")
    return "".join(f"{line}\n" for line in lines)


def _exported_here() -> dict[str, str]:
    return exported(os.environ, (Path.home(), Path.cwd()))


def _native(arguments: NeoXArgs, plan: LaunchPlan, values: Mapping[str, Any]) -> list[str]:
    return native_command(
        plan.hosts,
        values,
        script=[sys.executable, "-u", *script_arguments(arguments)],
        variables=_exported_here(),
        environ=os.environ,
        port=values["master_port"] if "master_port" in arguments.given else None,
    )
