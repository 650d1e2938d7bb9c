"""Finds mistakes in ``eval_tasks`` without lm-eval, which needs ten seconds to list its tasks.

Only certain mistakes: a name that no task file contains. Patterns, and names that a file contains
in another place than as the name of a task, are left to lm-eval.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from megatron.errors import nearest
from megatron.eval_tasks.old_names import current_name
from megatron.neox_arguments import ConfigError

__all__ = ["NOT_INSTALLED", "describe_unknown", "is_task_file", "require_tasks", "task_problems"]

_PLAIN_NAME = r"[\w.:/+-]+"
"""YAML has no other way to write such a name, apart from quotes around it."""
_DEFINITION = re.compile(
    rf"^[\"']?(?:task|group|tag)[\"']?: *[\"']?({_PLAIN_NAME})", re.ASCII | re.MULTILINE
)
_NO_DEFINITIONS = (".py", ".pyc", ".md", ".sh")
NOT_INSTALLED = (
    "eval_tasks: lm-eval is not installed; pip install -r requirements/requirements-eval.txt"
)


def require_tasks(requests: Sequence[str], folders: Sequence[str]) -> None:
    """Raises ConfigError if `task_problems` finds something."""
    if problems := task_problems(requests, folders):
        raise ConfigError(*problems)


def task_problems(requests: Sequence[str], folders: Sequence[str]) -> list[str]:
    """Finds a missing lm-eval, missing folders and files, and names of no task; one line each.

    Args:
        requests: Names of tasks, groups and tags; patterns; YAML files.
        folders: Folders with task files of the user.
    """
    if not requests:
        return []
    if importlib.util.find_spec("lm_eval") is None:
        return [NOT_INSTALLED]
    problems = [
        f"eval_task_paths: there is no folder {folder}; correct the path"
        for folder in folders
        if not Path(folder).is_dir()
    ]
    problems += [
        f"eval_tasks: there is no task file {request}; correct the path"
        for request in filter(is_task_file, requests)
        if not Path(request).is_file()
    ]
    names = (request for request in requests if not is_task_file(request))
    plain = frozenset(name for name in names if re.fullmatch(_PLAIN_NAME, name, re.ASCII))
    if problems or not plain:
        return problems
    unknown, known = _without_definition(plain, tuple(folders))
    return [describe_unknown(name, known) for name in requests if name in unknown]


def is_task_file(request: str) -> bool:
    """Whether a request names a file, not a task."""
    return request.endswith((".yaml", ".yml"))


def describe_unknown(request: str, known: Collection[str]) -> str:
    """The message about a request that means none of the ``known`` tasks."""
    if renamed := current_name(request, known):
        return f"eval_tasks: {request!r} is an old name; use lm-eval's present name, {renamed}"
    near = nearest(request, known, most=3)
    advice = f"similar: {', '.join(near)}" if near else "`lm-eval ls tasks` lists lm-eval's tasks"
    return (
        f"eval_tasks: there is no task {request!r}; {advice}; your own tasks are looked for in "
        "eval_task_paths"
    )


@functools.cache  # a program asks before it loads torch, and again with its list of tasks
def _without_definition(
    names: frozenset[str], folders: tuple[str, ...]
) -> tuple[frozenset[str], frozenset[str]]:
    """The names that no file contains, and the names that files define."""
    known = set[str]()
    for is_own, text in _texts(folders):
        if is_own and ("include" in text or "\0" in text):
            return frozenset(), frozenset()  # its names may be elsewhere, or in UTF-16
        names = frozenset(name for name in names if name not in text)
        if not names:
            break
        known.update(_DEFINITION.findall(text))
    return names, frozenset(known)


def _texts(folders: Sequence[str]) -> Iterator[tuple[bool, str]]:
    """Whether it is the user's, and the text: the user's task files, then all files of lm-eval."""
    package = importlib.util.find_spec("lm_eval")
    places = package.submodule_search_locations if package else None
    own = (path for folder in folders for path in Path(folder).glob("**/*.yaml"))
    others = (path for place in places or () for path in Path(place, "tasks").glob("**/*"))
    for is_own, paths in ((True, own), (False, others)):
        for path in paths:
            if path.suffix in _NO_DEFINITIONS or not path.is_file():
                continue
            with contextlib.suppress(OSError):  # lm-eval leaves out what it cannot read
                yield is_own, path.read_text(encoding="utf-8", errors="replace")
