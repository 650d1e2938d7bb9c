"""Decides on which machines, and with how many processes, a run starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron.launcher.devices import count_devices
from megatron.neox_arguments import ConfigError
from megatron.neox_arguments.hostfile import (
    MOST_SLOTS,
    Slots,
    hostfile_slots,
    included_here,
    parse_filter,
    select_slots,
    this_machines_names,
)
from megatron.neox_arguments.neox_args import launch_values, placed

__all__ = ["LaunchPlan", "plan_launch"]


_CHOOSE_DEVICES = ("include", "num_gpus", "hostfile", "world_size", "global_num_gpus")
"""Keys that choose GPUs of this machine, the strongest first."""


@dataclass(frozen=True)
class LaunchPlan:
    """Where a run starts."""

    num_processes: int
    """Processes on all machines."""
    device_indices: tuple[int, ...] = ()
    """Local devices in rank order; empty on a machine without devices."""
    hosts: Slots = field(default_factory=dict)
    """Machines of a run that does not start on this machine alone, with their slots; or empty."""


def plan_launch(
    neox_args: Any, environ: Mapping[str, str], *, num_devices: int | None = None
) -> LaunchPlan:
    """Plans a run from hostfile, include, exclude, num_nodes, num_gpus and world_size.

    Args:
        neox_args: The flat arguments; ``global_num_gpus`` replaces a missing ``world_size``.
        environ: The launcher's environment; ``DLTS_HOSTFILE`` replaces a missing ``hostfile``.
        num_devices: GPUs of this machine; counted when not given.

    Raises:
        ConfigError: For a hostfile that cannot be read, hosts that it does not name, impossible
            numbers of processes, or more processes than devices.
    """
    values = launch_values(neox_args)
    num_devices = count_devices(environ) if num_devices is None else num_devices
    try:
        return _plan(values, environ, num_devices)
    except ConfigError as error:
        raise placed(neox_args, error) from None


def _plan(values: Mapping[str, Any], environ: Mapping[str, str], num_devices: int) -> LaunchPlan:
    slots = hostfile_slots(values.__getitem__, environ)
    if slots is not None:
        is_remote = any(host not in this_machines_names() for host in slots)
        if len(slots) > 1 or is_remote or values["force_multi"]:
            return LaunchPlan(sum(map(len, slots.values())), hosts=slots)
        chosen = next(iter(slots.values()))
    else:
        chosen = _choose_here(values, num_devices)
    if num_devices == 0:
        return LaunchPlan(len(chosen))
    if max(chosen) >= num_devices:
        key = next((key for key in _CHOOSE_DEVICES if values[key]), "num_gpus")
        raise ConfigError(
            f"{key}: the run asks for GPU {max(chosen)} (counted from 0), but this machine "
            f"shows {num_devices} GPUs; ask for fewer, or set DS_ACCELERATOR=cpu for CPU processes",
            key=key,
        )
    return LaunchPlan(len(chosen), device_indices=chosen)


def _choose_here(values: Mapping[str, Any], num_devices: int) -> tuple[int, ...]:
    """Chooses slots of this machine, if no hostfile lists them."""
    if values["include"]:
        listed = included_here(values["include"], values["num_gpus"])
        if listed is not None:
            return listed
    for key in ("num_gpus", "world_size", "global_num_gpus"):
        count = values[key]
        if count:
            break
    else:
        key, count = "the number of GPUs", 0
    if count > MOST_SLOTS:
        raise ConfigError(
            f"{key} is {count}, but one machine starts at most {MOST_SLOTS} processes; lower it, "
            "or name the machines in a hostfile",
            key=key,
        )
    if not values["exclude"]:
        return tuple(range(count or num_devices or 1))
    # a number counts what is left; on CPUs there are no devices that could run out
    available = num_devices or (MOST_SLOTS if count else 1)
    names = this_machines_names()
    name = next(iter(parse_filter(values["exclude"], "exclude", names)))
    here: Slots = {name if name in names else "localhost": tuple(range(available))}
    (slots,) = select_slots(here, exclude=values["exclude"], num_gpus=count or None).values()
    return slots
