"""The command of a launcher of the machines themselves: Open MPI, Hydra's mpirun, Slurm.

`deepy.py -H hostfile` with `launcher: openmpi`, `slurm` and the like becomes this command. Ranks
find their place from the launcher's own variables (`megatron.launcher.rank_discovery`).
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from megatron.neox_arguments import ConfigError
from megatron.neox_arguments.hostfile import Slots

__all__ = ["NATIVE_PROGRAMS", "check_slots", "native_command"]

NATIVE_PROGRAMS = {
    "openmpi": ("mpirun.openmpi", "mpirun"),
    "mpich": ("mpirun.mpich", "mpirun"),
    "impi": ("mpirun",),
    "mvapich": ("mpiexec",),
    "slurm": ("srun",),
}
"""Programs by `launcher`; the first one that is installed is used."""

_EQUAL_SLOTS = ("mpich", "impi", "mvapich", "slurm")
"""Launchers that start the same number of processes on every machine."""


def check_slots(slots: Slots, launcher: str) -> None:
    """Checks that ``launcher`` can start processes on these slots.

    Raises:
        ConfigError: With the name of the launcher and of the machine.
    """
    if launcher == "pdsh":
        return
    counts = {name: len(numbers) for name, numbers in slots.items()}
    if launcher in _EQUAL_SLOTS and len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ConfigError(
            f"launcher: {launcher} starts the same number of processes on every machine, got "
            f"{listed}; set num_gpus, or choose launcher pdsh",
            key="launcher",
        )
    for name, numbers in slots.items():
        if numbers != tuple(range(len(numbers))):
            listed = ",".join(map(str, numbers))
            raise ConfigError(
                f"launcher: {launcher} takes the first slots of a machine, got {listed} of {name}; "
                "choose the first ones, or launcher pdsh",
                key="launcher",
            )


def native_command(
    slots: Slots,
    values: Mapping[str, Any],
    *,
    script: Sequence[str],
    variables: Collection[str],
    environ: Mapping[str, str],
    port: int | None = None,
) -> list[str]:
    """The command that starts ``script`` on these slots.

    Args:
        slots: Slots in use by host; rank 0 is on the first.
        values: The user's keys that say where a run starts.
        script: The command of a rank.
        variables: Names of variables for the ranks. They have to be in the environment of the
            command; their values, which may be secrets, are not on the command line.
        environ: The environment of this process.
        port: Where the ranks meet; None: they derive it from the launcher's number of the job.

    Raises:
        ConfigError: If the program is not installed here.
    """
    launcher = values["launcher"]
    address = values["master_addr"] or environ.get("MASTER_ADDR") or _name_of(next(iter(slots)))
    meeting = {"MASTER_ADDR": address} if len(slots) > 1 else {}
    if port is not None:
        meeting["MASTER_PORT"] = str(port)
    elif environ.get("MASTER_PORT"):
        meeting["MASTER_PORT"] = environ["MASTER_PORT"]
    if launcher == "slurm" and environ.get("DS_ACCELERATOR") == "cpu":
        values = {**values, "num_gpus": None}
    make = {"openmpi": _openmpi, "slurm": _slurm}.get(launcher, _hydra)
    program = _program(launcher, slots, environ)
    names = [word for name in variables if name not in meeting for word in ("-x", name)]
    exports = names if launcher == "openmpi" else []  # the others pass on all variables
    return [program, *make(slots, values, meeting), *exports, *script]


def _openmpi(slots: Slots, values: Mapping[str, Any], meeting: Mapping[str, str]) -> list[str]:
    hosts = ",".join(f"{name}:{len(numbers)}" for name, numbers in slots.items())
    exports = [word for item in meeting.items() for word in ("-x", "=".join(item))]
    total = str(sum(map(len, slots.values())))
    return ["-np", total, "--host", hosts, "--bind-to", "none", *exports]


def _hydra(slots: Slots, values: Mapping[str, Any], meeting: Mapping[str, str]) -> list[str]:
    each = len(next(iter(slots.values())))
    exports = [word for name, value in meeting.items() for word in ("-genv", name, value)]
    return ["-np", str(each * len(slots)), "-ppn", str(each), "-hosts", ",".join(slots), *exports]


def _slurm(slots: Slots, values: Mapping[str, Any], meeting: Mapping[str, str]) -> list[str]:
    each = len(next(iter(slots.values())))
    arguments = [f"--{name}={values[name]}" for name in ("account", "comment") if values[name]]
    arguments += [f"--nodelist={','.join(map(_name_of, slots))}", f"--nodes={len(slots)}"]
    arguments += [f"--ntasks={each * len(slots)}", f"--ntasks-per-node={each}"]
    if values["num_gpus"] is not None:
        arguments.append(f"--gpus-per-node={values['num_gpus']}")
    exports = ",".join(["ALL", *(f"{name}={value}" for name, value in meeting.items())])
    return [*arguments, "--kill-on-bad-exit=1", f"--export={exports}"]


def _program(launcher: str, slots: Slots, environ: Mapping[str, str]) -> str:
    names = NATIVE_PROGRAMS[launcher]
    for name in names:
        if shutil.which(name, path=environ.get("PATH")):
            return name
    raise ConfigError(
        f"launcher: {launcher} cannot start processes on {', '.join(slots)}: there is no program "
        f"{names[-1]} here; install it, or set launcher to pdsh, which needs only ssh",
        key="launcher",
    )


def _name_of(host: str) -> str:
    return host.rpartition("@")[2]
