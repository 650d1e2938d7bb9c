"""Reads configuration files and remembers the line of every key."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .errors import ConfigError, Origin, shown

SUFFIXES = (".yml", ".yaml", ".json")

KEPT_NAMES = ("resolved.json",)
"""Names that a checkpoint needs for files of its own beside the configuration files."""


@dataclass(frozen=True)
class Document:
    """The merged content of configuration files.

    ``values`` by key with underscores, ``origins`` the file and line of each key, ``texts`` the
    files as they are, ``notes`` what a user should know of the merge.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    origins: Mapping[str, Origin] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def find_file(name: str, folder: str | None = None) -> Path:
    """Returns the path of a configuration file; ``125M`` finds ``125M.yml``.

    Raises:
        ConfigError: If there is no such file.
    """
    path = Path(folder, name) if folder else Path(name)
    if not name.strip():
        raise ConfigError("the command line: the name of a configuration file is empty; write one")
    candidates = [path, *(Path(f"{path}{suffix}") for suffix in SUFFIXES)]
    for candidate in candidates:
        if is_file(candidate):
            return candidate
    if os.path.isdir(path):
        raise ConfigError(f"{path}: is a folder; name a file in it, or pass -d {path} and a name")
    if os.path.isdir(path.parent):
        names = [p.name for p in path.parent.iterdir() if p.suffix in SUFFIXES]
        near = difflib.get_close_matches(path.name, names, n=1) or difflib.get_close_matches(
            path.name, [Path(n).stem for n in names], n=1
        )
        hint = (
            f"; did you mean {path.parent / near[0]}?"
            if near
            else "; check its name and --conf_dir"
        )
    else:
        hint = f"; the folder {path.parent} does not exist"
    raise ConfigError(f"{_shortened(path)}: no such configuration file{hint}")


def is_file(path: str | Path) -> bool:
    """Tells whether ``path`` can be read as a file; any text may be asked about."""
    return os.path.isfile(path)


def _shortened(path: Path) -> str:
    return str(path) if len(str(path)) <= 200 else f"{str(path)[:197]}..."


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
            text = Path(path).read_text(encoding="utf-8-sig")  # some editors write a mark first
            entries = parse_text(text, str(path))
        except OSError as error:
            problems.append(f"{path}: cannot be read ({error.strerror}); check the path")
            continue
        except UnicodeDecodeError:
            problems.append(f"{path}: is not UTF-8 text; convert it")
            continue
        except ConfigError as error:
            problems.extend(error.messages)
            continue
        for written, value, line in entries:
            key, origin = written.replace("-", "_"), Origin(str(path), line)
            if key in origins:
                first, is_same_file = origins[key], origins[key].source == str(path)
                if not is_same_file and _are_equal(value, values[key]):
                    continue
                if is_same_file or spelled[key] == written:
                    problems.append(f"{origin}: '{key}' is already set at {first}; set it once")
                    continue
                notes.append(f"'{written}' at {origin} replaces '{spelled[key]}' at {first}")
            if key == "config_files":
                problems.append(f"{origin}: config_files is set by the program; remove it")
                continue
            values[key], origins[key], spelled[key] = value, origin, written
        texts[_unique_name(Path(path).name, (*KEPT_NAMES, *texts))] = text
    if problems:
        raise ConfigError(*problems)
    return Document(values, origins, texts, tuple(notes))


def _are_equal(one: Any, other: Any) -> bool:
    return json.dumps(one) == json.dumps(other)  # 1 is neither 1.0 nor true


def parse_text(text: str, source: str) -> list[tuple[str, Any, int]]:
    """Parses one YAML or JSON text into ``(key, value, line)``, keys as they are written.

    Raises:
        ConfigError: With file, line and column for malformed text; if the text is no mapping, or
            holds values that are neither text, numbers, true, false, null, lists nor sections.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return []
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(
                f"{source}:1: must be a section (key: value pairs), got {type(node).__name__}"
            )
        _refuse_nested_duplicates(node, source, top=True)
        loader.flatten_mapping(node)
        return [_entry(loader, key, value, source) for key, value in node.value]
    except yaml.MarkedYAMLError as error:
        if source.endswith(".json"):
            return _parse_json(text, source)
        raise ConfigError(_describe_yaml_error(error, source)) from None
    except yaml.YAMLError as error:  # characters that YAML does not allow
        raise ConfigError(f"{source}: is not valid YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise ConfigError(f"{source}: is nested too deeply, or holds itself; mend it") from None
    finally:
        loader.dispose()


def _entry(loader: Any, key_node: Any, value_node: Any, source: str) -> tuple[str, Any, int]:
    line = key_node.start_mark.line + 1
    where = f"{source}:{line}"
    try:
        key = loader.construct_object(key_node, deep=True)
        value = loader.construct_object(value_node, deep=True)
    except ValueError as error:  # the 30th of February, a number of 5000 digits
        raise ConfigError(f"{where}: cannot be read: {error}; put the value in quotes") from None
    if not isinstance(key, str):
        raise ConfigError(f"{where}: a key must be text, got {shown(key)}; put it in quotes")
    _refuse_other_objects(value, f"{where}: {key}")
    return key, value, line


def _refuse_other_objects(value: Any, where: str) -> None:
    """Refuses what JSON has not: YAML takes `2024-01-31` for a date, and knows sets and bytes."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, (str, int, float)):  # a bool is an int
                raise ConfigError(f"{where}: holds the key {shown(key)}; put it in quotes")
            _refuse_other_objects(item, where)
    elif isinstance(value, list):
        for item in value:
            _refuse_other_objects(item, where)
    elif value is not None and not isinstance(value, (str, int, float)):
        raise ConfigError(
            f"{where} holds {shown(value)}, a {type(value).__name__}; put it in quotes"
        )


def _refuse_nested_duplicates(
    node: Any, source: str, *, top: bool = False, done: set[int] | None = None
) -> None:
    """Refuses a key that stands twice in a nested section; the merge sees the outer keys."""
    done = set() if done is None else done
    if id(node) in done:  # aliases repeat a node, which may even hold itself
        return
    done.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_nested_duplicates(item, source, done=done)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[Hashable, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not top and isinstance(key_node, yaml.ScalarNode):
            if key_node.value in seen:
                first = f"{source}:{seen[key_node.value]}"
                raise ConfigError(
                    f"{source}:{line}: '{key_node.value}' is already set at {first}; set it once"
                )
            seen[key_node.value] = line
        _refuse_nested_duplicates(value_node, source, done=done)


def _describe_yaml_error(error: yaml.MarkedYAMLError, source: str) -> str:
    mark = error.problem_mark or error.context_mark
    where = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
    problem = " ".join(str(error.problem or error.context or "cannot be parsed").split())
    hint = "a comma, quote or bracket before this place may be missing"
    if "'\\t'" in problem:
        hint = "YAML is indented with spaces; replace the tab"
    return f"{where}: malformed YAML: {problem}; {hint}"


def _parse_json(text: str, source: str) -> list[tuple[str, Any, int]]:
    """Parses JSON that YAML does not take (tabs); finds lines by searching for the key."""
    sections: list[list[tuple[str, Any]]] = []

    def section(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        sections.append(pairs)
        return dict(pairs)

    try:
        values = json.loads(text, object_pairs_hook=section)
    except json.JSONDecodeError as error:
        where = f"{source}:{error.lineno}:{error.colno}"
        raise ConfigError(f"{where}: malformed JSON: {error.msg}; mend it there") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{source}:1: must be a section (key: value pairs)")
    *inner, outer = sections  # the outermost one ends last
    for pairs in inner:
        names = [key for key, _ in pairs]
        for key in names:
            if names.count(key) > 1:
                raise ConfigError(f"{source}: '{key}' is set twice in one section; set it once")
    lines = text.splitlines()
    entries: list[tuple[str, Any, int]] = []
    for key, value in outer:
        numbers = (n for n, line in enumerate(lines, start=1) if json.dumps(key) in line)
        entries.append((key, value, next(numbers, 1)))
    return entries


def _unique_name(name: str, taken: Collection[str]) -> str:
    stem, suffix = Path(name).stem, Path(name).suffix
    number = 2
    while name in taken:
        name = f"{stem}-{number}{suffix}"
        number += 1
    return name
