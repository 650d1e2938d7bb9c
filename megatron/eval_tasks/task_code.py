"""Finds the Python code that a user's task files would run, without running it.

A task file may name functions (``!function utils.process``), a class, or a metric that Hugging
Face's library ``evaluate`` fetches as a script. lm-eval runs them with all permissions of the user.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from megatron.neox_arguments import ConfigError

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

__all__ = ["refuse_task_code"]

_TRUE = ("true", "yes", "on")  # in YAML
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def refuse_task_code(manager: TaskManager, names: Sequence[str], folders: Sequence[str]) -> None:
    """Refuses tasks whose files run code; lm-eval's own task files may do so.

    Args:
        manager: Task manager that has read the files in ``folders``.
        names: Tasks, groups, tags and YAML files to load from it.
        folders: Folders with task files of the user.

    Raises:
        ConfigError: If there is such code; names the file, the line and the code.
    """
    for file in _files(manager, names, folders):
        for where, code in _code_in(file, set()):
            raise ConfigError(
                f"eval_tasks: {where}: runs Python code ({code}), which can do all that you can; "
                "read it first, then allow it with --trust_task_code (trust_task_code: true)"
            )


def _files(manager: TaskManager, names: Sequence[str], folders: Sequence[str]) -> Iterator[Path]:
    """The files that define ``names``; all files in ``folders`` if a name is not a single task."""
    for name in names:
        entry = manager.task_index.get(name)
        path = Path(name) if entry is None else entry.yaml_path
        if path is not None:
            yield Path(path)
        if name not in manager.all_subtasks:  # a group, a tag, or a file that may define a group
            for folder in folders:
                yield from sorted(Path(folder).glob("**/*.yaml"))


def _code_in(file: Path, done: set[Path]) -> Iterator[tuple[str, str]]:
    """Yields the place and text of code that a file, or a file that it includes, would run."""
    file = Path(os.path.realpath(file.expanduser()))  # of a link to itself, the link
    if file in done or _is_of_lm_eval(file):
        return
    done.add(file)
    try:
        node = yaml.compose(file.read_bytes(), Loader=_LOADER)
    except (OSError, yaml.YAMLError, UnicodeError, RecursionError):
        return  # lm-eval cannot read it either, and reports why
    yield from ((f"{file}:{n.start_mark.line + 1}", code) for n, code in _code_nodes(node, set()))
    for key, value in _entries(node, set()):
        if key.value == "class" and value.tag != "!function":
            yield f"{file}:{key.start_mark.line + 1}", f"class {value.value}"
        if key.value == "include":
            for name in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                yield from _code_in(file.parent / str(name.value), done)


def _code_nodes(node: Any, done: set[int]) -> Iterator[tuple[Any, str]]:
    if node is None or id(node) in done:  # aliases repeat a node
        return
    done.add(id(node))
    if node.tag == "!function":
        yield node, f"!function {node.value}"
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _code_nodes(item, done)
    elif isinstance(node, yaml.MappingNode):
        entries = {str(key.value): value for key, value in _entries(node, set())}
        metric = entries.get("metric")
        if isinstance(metric, yaml.ScalarNode) and _is_fetched(metric, entries.get("hf_evaluate")):
            yield metric, f"metric {metric.value}, which the library evaluate fetches"
        for key, value in node.value:
            yield from _code_nodes(key, done)
            yield from _code_nodes(value, done)


def _entries(node: Any, done: set[int]) -> Iterator[tuple[Any, Any]]:
    """Keys and values of a mapping: merged ones (``<<``) first, so that own ones override them."""
    if not isinstance(node, yaml.MappingNode) or id(node) in done:
        return
    done.add(id(node))
    for key, value in node.value:
        if key.tag == "tag:yaml.org,2002:merge":
            for merged in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                yield from _entries(merged, done)
    yield from (entry for entry in node.value if entry[0].tag != "tag:yaml.org,2002:merge")


def _is_fetched(metric: yaml.ScalarNode, hf_evaluate: Any) -> bool:
    import lm_eval.api.metrics  # noqa: F401 - registers lm-eval's own
    from lm_eval.api.registry import metric_registry

    if metric.tag == "!function":
        return False  # reported as a !function already
    asks = isinstance(hf_evaluate, yaml.ScalarNode) and hf_evaluate.value.lower() in _TRUE
    return asks or metric.value not in metric_registry


def _is_of_lm_eval(file: Path) -> bool:
    import lm_eval.tasks

    return file.is_relative_to(Path(lm_eval.tasks.__file__).resolve().parent)
