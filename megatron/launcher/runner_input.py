"""What DeepSpeed's runner gets for a run over several machines: a hostfile of our own, and flags.

The runner reads hostfiles and filters by its own rules, and each of its launchers supports only
some of them. So the filters are applied here and the runner gets the result. It gets `exclude` only
for slots with gaps, which a hostfile cannot express.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron.neox_arguments import ConfigError
from megatron.neox_arguments.hostfile import Slots

__all__ = ["check_runner_input", "hostfile_text", "runner_flags"]

_EQUAL_SLOTS = ("mpich", "impi", "mvapich", "slurm")
"""Launchers that start the same number of processes on every machine."""


def check_runner_input(slots: Slots, launcher: str) -> None:
    """Checks that ``launcher`` can start processes on these slots.

    Raises:
        ConfigError: With the name of the launcher and of the machine.
    """
    counts = {name: len(numbers) for name, numbers in slots.items()}
    if launcher in _EQUAL_SLOTS and len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ConfigError(
            f"launcher: {launcher} starts the same number of processes on every machine, got "
            f"{listed}; set num_gpus, or choose launcher pdsh",
            key="launcher",
        )
    for name, numbers in slots.items():
        missing = _missing(numbers)
        listed = ",".join(map(str, numbers))
        if missing and launcher != "pdsh":
            raise ConfigError(
                f"launcher: {launcher} takes the first slots of a machine, got {listed} of {name}; "
                "choose the first ones, or launcher pdsh",
                key="launcher",
            )
        if missing and not _is_plain(name):
            raise ConfigError(
                f"slots {listed} of {name}: DeepSpeed's runner cannot choose slots of a name with "
                "'@' or ':'; choose the first ones, or give the machine a name in ssh's "
                "configuration",
            )
        if launcher == "pdsh" and not _pdsh_reads(name):
            raise ConfigError(
                f"host {name}: pdsh takes the part before ':' for something else; give the machine "
                "a name in ssh's configuration, or in /etc/hosts",
            )


def hostfile_text(slots: Slots) -> str:
    """Lines `host slots=N` that the runner reads; N is up to the last slot in use."""
    return "".join(f"{name} slots={numbers[-1] + 1}\n" for name, numbers in slots.items())


def runner_flags(slots: Slots, hostfile: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values that replace the user's keys for the runner.

    Args:
        slots: Slots in use by host.
        hostfile: Where `hostfile_text` was written.
        values: The user's keys that say where a run starts.
    """
    gaps = {name: _missing(numbers) for name, numbers in slots.items()}
    parts = [f"{name}:{','.join(map(str, numbers))}" for name, numbers in gaps.items() if numbers]
    return {
        "hostfile": str(hostfile),
        "include": None,
        "exclude": "@".join(parts) or None,
        "num_nodes": -1,
        "num_gpus": None,
        # without it the runner starts a single machine's processes here, wherever that machine is
        "force_multi": True,
        "slurm_arguments": _slurm_arguments(slots, values),
    }


def _slurm_arguments(slots: Slots, values: Mapping[str, Any]) -> str:
    """What a filter means for srun, which does not read hostfiles."""
    arguments = []
    if values["include"] or values["exclude"]:
        arguments.append(f"--nodelist={','.join(slots)}")
    if arguments or values["num_nodes"] > 0:
        arguments.append(f"--nodes={len(slots)}")
    if values["num_gpus"] is not None:
        arguments.append(f"--gpus-per-node={values['num_gpus']}")
    return shlex.join(arguments)


def _missing(numbers: tuple[int, ...]) -> tuple[int, ...]:
    """Slots before the last one in use that are not in use."""
    return tuple(number for number in range(numbers[-1]) if number not in numbers)


def _is_plain(name: str) -> bool:
    return "@" not in name and ":" not in name


def _pdsh_reads(name: str) -> bool:
    """`pdsh -w` reads `kind:user@host`; an address is seen as one only where `::` comes first."""
    before, colon, after = name.partition(":")
    return not colon or (after.startswith(":") and "@" not in before)
