"""Hostfiles and the filters `include` and `exclude`: how many processes run where."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .errors import ConfigError, shown
from .schema import is_file

Slots = dict[str, tuple[int, ...]]
"""Slot numbers by host name, in the order of the file."""

MOST_SLOTS = 4096
"""Processes of one machine; more are a slip of the pen, and would fill its memory."""


def count_problems(value_of: Callable[[str], Any]) -> dict[str, str]:
    """Returns what is wrong with the keys that choose processes and machines, by key."""
    problems: dict[str, str] = {}
    gpus, nodes = value_of("num_gpus"), value_of("num_nodes")
    if gpus is not None and not 1 <= gpus <= MOST_SLOTS:
        problems["num_gpus"] = (
            f"num_gpus must be 1 to {MOST_SLOTS}, got {gpus}; remove it to use all GPUs"
        )
    if nodes != -1 and nodes < 1:
        problems["num_nodes"] = f"num_nodes must be at least 1, or -1 for all, got {nodes}"
    for key in ("world_size", "global_num_gpus"):
        count = value_of(key)
        if count is not None and count < 0:
            problems[key] = f"{key} must be at least 1, got {count}; remove it to count processes"
    if value_of("include") and value_of("exclude"):
        problems["exclude"] = "include and exclude are both set; keep one"
    return problems


def hostfile_slots(value_of: Callable[[str], Any], environ: Mapping[str, str]) -> Slots | None:
    """Slots that the hostfile and the keys beside it leave.

    Args:
        value_of: Returns the value of a key.
        environ: ``DLTS_HOSTFILE`` stands in for `hostfile`.

    Returns:
        None without a hostfile; one that is named and not there is the same (see
        `missing_hostfile`).

    Raises:
        ConfigError: For a hostfile that cannot be read, or filters that do not fit it.
    """
    path = _hostfile_path(value_of, environ)
    if path is None or not is_file(path):
        return None
    return select_slots(
        read_hostfile(path),
        include=value_of("include"),
        exclude=value_of("exclude"),
        num_nodes=value_of("num_nodes"),
        num_gpus=value_of("num_gpus"),
    )


def missing_hostfile(value_of: Callable[[str], Any], environ: Mapping[str, str]) -> str | None:
    """Path of a hostfile that is named and not there, or None."""
    path = _hostfile_path(value_of, environ)
    return path if path is not None and not is_file(path) else None


def _hostfile_path(value_of: Callable[[str], Any], environ: Mapping[str, str]) -> str | None:
    path = value_of("hostfile") or environ.get("DLTS_HOSTFILE")
    return None if path in (None, "", "None") else path


def read_hostfile(path: str | Path) -> Slots:
    """Reads lines `host slots=N`; empty lines and `#` comments are skipped.

    Raises:
        ConfigError: For a file that cannot be read, or, with its line, for a line of another form
            or a host that stands twice.
    """
    hosts: Slots = {}
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # editors of Windows write a mark first
    except OSError as error:
        raise ConfigError(
            f"{path}: hostfile cannot be read ({error.strerror}); check the path"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: hostfile is not UTF-8 text; convert it") from None
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        name, *rest = words
        count = rest[0][len("slots=") :] if len(rest) == 1 and rest[0].startswith("slots=") else ""
        if not count.isdecimal() or not 1 <= int(count[:9]) <= MOST_SLOTS:
            raise ConfigError(
                f"{path}:{number}: must be 'host slots=N', N from 1 to {MOST_SLOTS}, got "
                f"{shown(line.strip())}"
            )
        if name in hosts:
            raise ConfigError(f"{path}:{number}: host {name!r} stands twice; give it one line")
        hosts[name] = tuple(range(int(count)))
    if not hosts:
        raise ConfigError(f"{path}: names no host; write lines 'host slots=N'")
    return hosts


def parse_filter(text: str, key: str) -> dict[str, tuple[int, ...] | None]:
    """Parses `host1@host2:0,2` into slots by host; None means all slots.

    Raises:
        ConfigError: If a part has another form.
    """
    chosen: dict[str, tuple[int, ...] | None] = {}
    for part in text.split("@"):
        name, colon, numbers = part.strip().partition(":")
        slots = [number.strip() for number in numbers.split(",")] if colon else []
        if not name or not all(slot.isdecimal() and len(slot) < 9 for slot in slots):
            raise ConfigError(f"{key} must look like 'host1@host2:0,2', got {shown(text)}", key=key)
        if name in chosen:
            raise ConfigError(f"{key} names host {name!r} twice; write 'host:0,2' once", key=key)
        if len(set(map(int, slots))) < len(slots):
            raise ConfigError(f"{key} names a slot of {name!r} twice, got {shown(text)}", key=key)
        chosen[name] = tuple(int(slot) for slot in slots) if colon else None
    return chosen


def select_slots(
    hosts: Mapping[str, tuple[int, ...]],
    *,
    include: str | None = None,
    exclude: str | None = None,
    num_nodes: int = -1,
    num_gpus: int | None = None,
) -> Slots:
    """Applies the filters: first `include` or `exclude`, then `num_nodes` and `num_gpus`.

    Raises:
        ConfigError: If both filters are given, a host or slot is unknown, or nothing is left.
    """
    if include and exclude:
        raise ConfigError("include and exclude are both set; keep one", key="exclude")
    selected = dict(hosts)
    if include or exclude:
        key = "include" if include else "exclude"
        chosen = parse_filter(include or exclude or "", key)
        for name, slots in chosen.items():
            if name not in hosts:
                known = ", ".join(hosts)
                raise ConfigError(f"{key} names host {name!r}; known hosts: {known}", key=key)
            if slots is not None and not set(slots) <= set(hosts[name]):
                raise ConfigError(
                    f"{key} names slots {slots} of {name!r}; it has {hosts[name]}", key=key
                )
        if include:
            selected = {n: (chosen[n] or hosts[n]) for n in hosts if n in chosen}
        else:
            selected = {n: _without(hosts[n], chosen, n) for n in hosts}
    if num_nodes > 0:
        if num_nodes > len(selected):
            raise ConfigError(
                f"num_nodes is {num_nodes}, there are {len(selected)} hosts", key="num_nodes"
            )
        selected = dict(list(selected.items())[:num_nodes])
    if num_gpus is not None and not include and not exclude:
        for name, slots in selected.items():
            if len(slots) < num_gpus:
                raise ConfigError(
                    f"num_gpus is {num_gpus}, host {name!r} has {len(slots)} slots", key="num_gpus"
                )
        selected = {name: slots[:num_gpus] for name, slots in selected.items()}
    selected = {name: slots for name, slots in selected.items() if slots}
    if not selected:
        key = "include" if include else "exclude"
        raise ConfigError(f"{key} leaves no slot to run on", key=key)
    return selected


def _without(
    slots: tuple[int, ...], excluded: Mapping[str, tuple[int, ...] | None], name: str
) -> tuple[int, ...]:
    if name not in excluded:
        return slots
    removed = excluded[name]
    return () if removed is None else tuple(slot for slot in slots if slot not in removed)
