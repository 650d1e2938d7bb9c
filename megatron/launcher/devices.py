"""Counts this machine's accelerators without loading torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

__all__ = ["count_devices", "rank_device_environment"]

_VISIBLE = "CUDA_VISIBLE_DEVICES"


def count_devices(environ: Mapping[str, str], device_folder: Path = Path("/dev")) -> int:
    """Counts the GPUs that a process of this environment would see; 0 on a machine without.

    A list of visible devices in the environment is used without a check. ``DS_ACCELERATOR=cpu``
    hides every GPU.
    """
    if environ.get("DS_ACCELERATOR") == "cpu":
        return 0
    listed = environ.get(_VISIBLE)
    if listed is not None:
        names = [name.strip() for name in listed.split(",")]
        # the driver stops at the first entry that is not a device: "0,-1,1" shows one GPU
        for place, name in enumerate(names):
            if name in ("", "-1", "NoDevFiles"):
                return place
        return len(names)
    count = len([entry for entry in device_folder.glob("nvidia*") if entry.name[6:].isdecimal()])
    if count == 0 and (device_folder / "kfd").exists():  # AMD's compute driver
        count = len(list(device_folder.glob("dri/renderD*")))
    if count == 0 and (device_folder / "dxg").exists():  # Windows' GPU inside its Linux subsystem
        count = 1
    return count


def rank_device_environment(
    device_indices: tuple[int, ...], environ: Mapping[str, str]
) -> dict[str, str]:
    """Gives local rank i the i-th of ``device_indices``, which count the visible devices."""
    if not device_indices:
        return {"DS_ACCELERATOR": "cpu"} if count_devices(environ) == 0 else {}
    listed = environ.get(_VISIBLE)
    names = [name.strip() for name in listed.split(",")] if listed else None
    chosen = [names[index] if names else str(index) for index in device_indices]
    return {_VISIBLE: ",".join(chosen)}
