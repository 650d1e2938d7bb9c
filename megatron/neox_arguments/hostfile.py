"""Hostfiles and the filters `include` and `exclude`: how many processes run where."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from odm.wording import counted

from .bounds import MOST_PROCESSES
from .errors import ConfigError, shown
from .schema import read_text

Slots = dict[str, tuple[int, ...]]
"""Slot numbers by host name, in the order of the file."""

Filter = dict[str, tuple[int, ...] | None]
"""Slots of a filter by host name; None means all slots."""

MOST_SLOTS = 4096
"""Processes of one machine; more are a slip of the pen, and would fill its memory."""

_HOST = re.compile(r"(?:[\w.][\w.-]*@)?(?:[\w.][\w.-]*|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:%[\w.-]+)?)")
"""`name`, `user@name` or an IPv6 address. Other characters mean something to ssh, pdsh or Slurm, a
dash at the beginning most of all."""


BOTH_FILTERS = "include and exclude are both set; keep one"


def is_host_name(name: str) -> bool:
    """Tells whether ``name`` can be given to ssh and its like: no option, no list, no range."""
    return len(name) <= 255 and _HOST.fullmatch(name) is not None


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
    if path is None or not os.path.exists(path):
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
    return path if path is not None and not os.path.exists(path) else None


def _hostfile_path(value_of: Callable[[str], Any], environ: Mapping[str, str]) -> str | None:
    path = value_of("hostfile") or environ.get("DLTS_HOSTFILE")
    return None if path in (None, "", "None", os.devnull) else path


def read_hostfile(path: str | Path) -> Slots:
    """Reads lines `host slots=N`; empty lines and `#` comments are skipped.

    An IPv6 address may be in brackets; the name that is returned is without.

    Raises:
        ConfigError: For a file that cannot be read, or, with its line, for a line of another form,
            a host that is named twice or has no name for a host, or more slots than a run has.
    """
    hosts: Slots = {}
    total = 0
    for number, line in enumerate(read_text(path, "hostfile").splitlines(), start=1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        name, *rest = words
        count = rest[0][len("slots=") :] if len(rest) == 1 and rest[0].startswith("slots=") else ""
        name, problem = _unbracketed(name), None
        if not count.isdecimal() or not 1 <= int(count[:9]) <= MOST_SLOTS:
            form = f"'host slots=N', N from 1 to {MOST_SLOTS}"
            problem = f"must be {form}, got {shown(line.strip())}"
        elif not is_host_name(name):
            advice = "write its name, user@name or its address"
            problem = f"host {shown(name)} is no name of a machine; {advice}"
        elif name in hosts:
            problem = f"host {name!r} is named twice; give it one line"
        elif (total := total + int(count)) > MOST_PROCESSES:  # before their numbers fill the memory
            problem = f"has more than {MOST_PROCESSES} slots up to this line; lower them"
        if problem:
            raise ConfigError(f"{path}:{number}: {problem}")
        hosts[name] = tuple(range(int(count)))
    if not hosts:
        raise ConfigError(f"{path}: names no host; write lines 'host slots=N'")
    return hosts


def parse_filter(text: str, key: str, hosts: Collection[str] = ()) -> Filter:
    """Parses `host1@host2:0,2` into sorted slots by host; None means all slots.

    Args:
        text: The filter. A host may be in brackets.
        key: `include` or `exclude`, for messages.
        hosts: Known hosts. A name of theirs that holds `@` or `:` is found in the text; others may
            be in it.

    Raises:
        ConfigError: If a part has another form, names a host or slot twice, or if the text can be
            read in two ways.
    """
    chosen: Filter = {}
    for name, numbers in _parts(text, key, hosts):
        slots = [] if numbers is None else [number.strip() for number in numbers.split(",")]
        if name in chosen:
            raise ConfigError(f"{key} names host {name!r} twice; write 'host:0,2' once", key=key)
        if len(set(map(int, slots))) < len(slots):
            raise ConfigError(f"{key} names a slot of {name!r} twice, got {shown(text)}", key=key)
        chosen[name] = None if numbers is None else tuple(sorted(map(int, slots)))
    return chosen


_Part = tuple[str, "str | None"]


def _parts(text: str, key: str, hosts: Collection[str]) -> list[_Part]:
    """Cuts a filter into pairs of a host and the text of its slots."""
    pieces = text.split("@")
    # readings[i]: up to two ways to read the pieces from i on, as chains of (part, the rest)
    readings: list[list[Any]] = [[] for _ in pieces] + [[None]]
    for start in reversed(range(len(pieces))):
        for end in range(start + 1, min(start + 3, len(pieces) + 1)):  # user@host has two pieces
            for part in _readings_of_part("@".join(pieces[start:end])):
                if part[0] in hosts:
                    readings[start] += [(part, rest) for rest in readings[end]]
        del readings[start][2:]
    if len(readings[0]) == 2:
        advice = "write hosts in brackets: [host]:0"
        raise ConfigError(f"{key} can be read in two ways, got {shown(text)}; {advice}", key=key)
    parts: list[_Part] = []
    chain = readings[0][0] if readings[0] else None
    while chain is not None:
        part, chain = chain
        parts.append(part)
    for piece in () if parts else pieces:
        name, colon, numbers = piece.strip().partition(":")
        if not name or (colon and not _are_slots(numbers)):
            raise ConfigError(f"{key} must look like 'host1@host2:0,2', got {shown(text)}", key=key)
        parts.append((name.strip(), numbers if colon else None))
    return parts


def _readings_of_part(text: str) -> Iterator[_Part]:
    text = text.strip()
    yield _unbracketed(text), None
    name, colon, numbers = text.rpartition(":")
    if colon and _are_slots(numbers):
        yield _unbracketed(name.strip()), numbers


def _unbracketed(name: str) -> str:
    return name[1:-1] if name.startswith("[") and name.endswith("]") else name


def _are_slots(text: str) -> bool:
    numbers = [number.strip() for number in text.split(",")]
    return all(number.isdecimal() and len(number) < 9 for number in numbers)


def select_slots(
    hosts: Mapping[str, tuple[int, ...]],
    *,
    include: str | None = None,
    exclude: str | None = None,
    num_nodes: int = -1,
    num_gpus: int | None = None,
) -> Slots:
    """Applies `include`, or else `exclude`, then `num_nodes` and `num_gpus` to what they leave.

    Raises:
        ConfigError: If a host or slot is unknown, or too little is left.
    """
    selected, left = dict(hosts), ""
    if include or exclude:
        key = "include" if include else "exclude"
        left = f" after {key}"
        chosen = parse_filter(include or exclude or "", key, hosts)
        for name, slots in chosen.items():
            if name not in hosts:
                known = shown(", ".join(hosts))[1:-1]
                raise ConfigError(f"{key} names host {shown(name)}; known hosts: {known}", key=key)
            if slots is not None and not set(slots) <= set(hosts[name]):
                there = f"which has {_listed(hosts[name])}"
                problem = f"{key} names slots {_listed(slots)} of {name!r}, {there}"
                raise ConfigError(problem, key=key)
        named = {name: set(chosen[name] or hosts[name]) for name in chosen}
        for name, slots in hosts.items():
            listed = named.get(name, set())
            selected[name] = tuple(slot for slot in slots if (slot in listed) == bool(include))
        selected = {name: slots for name, slots in selected.items() if slots}
    if not selected:
        raise ConfigError("exclude leaves no slot to run on", key="exclude")
    if num_nodes > len(selected):
        there = f"the run has {counted(len(selected), 'host')}{left}"
        raise ConfigError(f"num_nodes is {num_nodes}, {there}; lower it", key="num_nodes")
    if num_nodes > 0:
        selected = dict(list(selected.items())[:num_nodes])
    for name, slots in selected.items():
        if num_gpus is not None and len(slots) < num_gpus:
            there = f"host {name!r} has {counted(len(slots), 'slot')}{left}"
            raise ConfigError(f"num_gpus is {num_gpus}, {there}; lower it", key="num_gpus")
    return {name: slots[:num_gpus] for name, slots in selected.items()}


def _listed(slots: tuple[int, ...]) -> str:
    """Writes slots as a filter does; a run of three or more as first..last."""
    if len(slots) > 2 and slots == tuple(range(slots[0], slots[0] + len(slots))):
        return f"{slots[0]}..{slots[-1]}"
    return shown(",".join(map(str, slots)))[1:-1]


def included_here(include: str, num_gpus: int | None) -> tuple[int, ...] | None:
    """Slots of this machine that `include` lists, where there is no hostfile; None for all.

    Raises:
        ConfigError: If it names another machine, or lists fewer slots than `num_gpus`.
    """
    names = this_machines_names()
    chosen = parse_filter(include, "include", names)
    problem = None
    if others := [host for host in chosen if host not in names]:
        advice = "set hostfile, or write localhost"
        problem = f"names host {shown(others[0])}, and there is no hostfile; {advice}"
    elif len(chosen) > 1:
        problem = f"names this machine twice, got {shown(include)}; write 'localhost:0,2' once"
    if problem:
        raise ConfigError(f"include {problem}", key="include")
    (listed,) = chosen.values()
    if listed is None or num_gpus is None:
        return listed
    return select_slots({"localhost": listed}, num_gpus=num_gpus)["localhost"]


def this_machines_names() -> tuple[str, ...]:
    """Names under which this machine may be listed."""
    return ("localhost", "127.0.0.1", "::1", socket.gethostname())
