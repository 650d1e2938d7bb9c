"""Reads configuration files and remembers the line of every key."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from megatron.errors import nearest

from .bounds import LARGEST_FILE_BYTES
from .errors import ConfigError, Origin, shown
from .parsing import parse_text
from .secrets import redacted_text

SUFFIXES = (".yml", ".yaml", ".json")

KEPT_NAMES = ("resolved.json",)
"""Names that a checkpoint needs for files of its own beside the configuration files."""


@dataclass(frozen=True)
class Document:
    """What was written: the merged content of files and flags, or values of a program.

    ``values`` by key with underscores, ``origins`` the place of each key that has one, ``texts``
    the files as they are, without secrets, ``notes`` what a user should know of the merge.
    """

    values: Mapping[str, Any]
    origins: Mapping[str, Origin] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def replaced(self, values: Mapping[str, Any], source: str) -> Document:
        """Returns it with other values for some keys, which were written in ``source``."""
        origins = {**self.origins, **dict.fromkeys(values, Origin(source))}
        return replace(self, values={**self.values, **values}, origins=origins)


def find_file(name: str, folder: str | None = None) -> Path:
    """Returns the path of a configuration file; ``125M`` finds ``125M.yml``.

    Raises:
        ConfigError: If there is no such file.
    """
    path = Path(folder, name) if folder else Path(name)
    candidates = [path, *(Path(f"{path}{suffix}") for suffix in SUFFIXES)]
    for candidate in candidates:
        if os.path.isfile(candidate):
            return candidate
    if os.path.isdir(path):
        advice = f"name a file in it, or pass -d {path} and a name"
        raise ConfigError(f"{path}: is a folder; {advice}")
    if os.path.exists(path):
        raise ConfigError(f"{path}: is no ordinary file; write the configuration into one")
    if broken := next(filter(os.path.islink, candidates), None):
        raise ConfigError(f"{broken}: is a link that leads to no file; correct or remove it")
    if os.path.isdir(path.parent):
        names = [p.name for p in path.parent.glob("*.*") if p.suffix in SUFFIXES]
        near = nearest(path.name, names) or nearest(path.name, [Path(n).stem for n in names])
        hint = f"did you mean {path.parent / near[0]}?" if near else "check its name and --conf_dir"
    elif os.path.exists(path.parent):
        hint = f"{path.parent} is a file, name the folder it is in"
    else:
        hint = f"the folder {path.parent} does not exist"
    raise ConfigError(f"{path}: no such configuration file; {hint}")


def read_text(path: str | Path, what: str = "") -> str:
    """Returns the text of a file that a person wrote.

    Args:
        path: A regular file of at most ``LARGEST_FILE_BYTES``.
        what: Kind of file, for messages.

    Raises:
        ConfigError: If it is no such file, cannot be read or is not UTF-8.
    """
    kind = f"{what} " if what else ""
    if os.path.exists(path) and not os.path.isfile(path):
        raise ConfigError(f"{path}: {kind}is no ordinary file; name one")
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST_FILE_BYTES + 1)
    except OSError as error:
        problem = f"cannot be read ({error.strerror}); check the path"
        raise ConfigError(f"{path}: {kind}{problem}") from None
    if len(content) > LARGEST_FILE_BYTES:
        problem = f"is larger than {LARGEST_FILE_BYTES} bytes; is this the right file?"
        raise ConfigError(f"{path}: {kind}{problem}")
    try:
        return content.decode("utf-8-sig")  # some editors write a mark first
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: {kind}is not UTF-8 text; convert it") from None


def read_files(paths: Iterable[str | Path]) -> Document:
    """Reads and merges files.

    The order does not matter, for a key has one value: files may repeat it. As GPT-NeoX does it, a
    key that one file spells with dashes and another one with underscores is taken from the later
    file; the pairs of published files that need this get a note.

    Raises:
        ConfigError: A message for each file that is named twice or cannot be parsed, and for each
            key with two values.
    """
    spelled: dict[str, str] = {}
    notes: list[str] = []
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    texts: dict[str, str] = {}
    problems: list[str] = []
    seen: set[Path] = set()
    for path in paths:
        if Path(path).resolve() in seen:
            problems.append(f"{path}: this file is named twice; name it once")
            continue
        seen.add(Path(path).resolve())
        try:
            text = read_text(path)
            entries = parse_text(text, str(path))
        except ConfigError as error:
            problems.extend(error.messages)
            continue
        for written, value, line in entries:
            key, origin = written.replace("-", "_"), Origin(str(path), line)
            if key in origins:
                first, is_same_file = origins[key], origins[key].source == str(path)
                if not is_same_file and json.dumps(value) == json.dumps(values[key]):
                    continue  # as text, 1 is neither 1.0 nor true
                if is_same_file or spelled[key] == written:
                    problem = f"{shown(key)} is already set at {first}; set it once"
                    problems.append(f"{origin}: {problem}")
                    continue
                notes.append(f"'{written}' at {origin} replaces '{spelled[key]}' at {first}")
            if key == "config_files":
                problems.append(f"{origin}: config_files is set by the program; remove it")
                continue
            values[key], origins[key], spelled[key] = value, origin, written
        name = os.fsencode(Path(path).name).decode(errors="replace")
        texts[_unique_name(name, (*KEPT_NAMES, *texts))] = redacted_text(text)
    if problems:
        raise ConfigError(*problems)
    return Document(values, origins, texts, tuple(notes))


def with_underscores(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns values by key with underscores.

    Raises:
        ConfigError: If a key is set with dashes and with underscores.
    """
    result: dict[str, Any] = {}
    for key, value in values.items():
        if not isinstance(key, str):
            raise ConfigError(f"a key must be text, got {shown(key)}; write its name")
        name = key.replace("-", "_")
        if name in result:
            problem = "is set twice, with dashes and with underscores; set it once"
            raise ConfigError(f"{shown(name)} {problem}")
        result[name] = value
    return result


def _unique_name(name: str, taken: Collection[str]) -> str:
    stem, suffix = Path(name).stem, Path(name).suffix
    number = 2
    while name in taken:
        name = f"{stem}-{number}{suffix}"
        number += 1
    return name
