"""Finds the tasks that a user names, and loads their data, before a model is loaded."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron.errors import TaskError
from megatron.eval_tasks.chat import ChatTemplate, template_folder
from megatron.eval_tasks.generation_settings import read_settings
from megatron.eval_tasks.requests import describe_unknown, is_task_file, require_tasks
from megatron.eval_tasks.sharing import run_together
from megatron.eval_tasks.surroundings import lm_eval_surroundings
from megatron.eval_tasks.task_code import refuse_task_code
from megatron.neox_arguments import ConfigError, RunConfig

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks.manager import TaskDict

__all__ = ["find_tasks", "load_tasks"]

_NO_NETWORK = ("offline", "couldn't reach", "connection", "localentrynotfound", "max retries")


def load_tasks(config: RunConfig) -> TaskDict:
    """Loads the tasks that ``eval_tasks`` names, with their data; all ranks call it.

    One process per machine downloads the data first, so that the others find them on disk.

    Raises:
        ConfigError: On every rank: if lm-eval is not installed; if a task is unknown, its data
            cannot be read, it runs code that is not trusted, or its settings for generated text are
            not supported; or if a chat template is needed and there is none.
    """
    if config.evaluation.apply_chat_template:
        _ = ChatTemplate(template_folder(config)).text  # raises if there is none
    with lm_eval_surroundings():
        folders = config.evaluation.task_paths or ()
        manager, names = find_tasks(config.evaluation.tasks or (), folders)
        if not config.evaluation.trust_task_code:
            refuse_task_code(manager, names, folders)
        loaded: list[TaskDict] = []
        is_first = os.environ.get("LOCAL_RANK", "0") == "0"
        run_together(lambda: loaded.append(_build(manager, names)), is_taking_part=is_first)
        run_together(lambda: loaded.append(_build(manager, names)), is_taking_part=not is_first)
    _check_generation(loaded[0], window=config.model.longest_text)
    return loaded[0]


def find_tasks(requests: Sequence[str], folders: Sequence[str]) -> tuple[TaskManager, list[str]]:
    """Finds tasks by name, pattern or file.

    Reading lm-eval's own 14,000 files takes ten seconds, so they are read only if ``folders`` and
    named files do not define everything.

    Args:
        requests: Names of tasks, groups and tags; patterns, which match single tasks only; YAML
            files.
        folders: Folders with task files.

    Returns:
        lm-eval's task manager, and the names to load from it.

    Raises:
        ConfigError: If a folder or file is missing, or a name or pattern matches nothing.
    """
    require_tasks(requests, folders)
    from lm_eval.tasks import TaskManager

    include: list[str | Path] = list(folders)
    manager = TaskManager(include_path=include, include_defaults=False)
    if not all(_is_complete(request, manager) for request in requests):
        manager = TaskManager(include_path=include)
    names: list[str] = []
    unknown = []
    for request in requests:
        found = _matches(request, manager)
        names.extend(found)
        if not found:
            unknown.append(describe_unknown(request, manager.all_tasks))
    if unknown:
        raise ConfigError(*unknown)
    return manager, list(dict.fromkeys(names))


def _is_complete(request: str, local: TaskManager) -> bool:
    """Whether the user's own files define everything that ``request`` names."""
    if is_task_file(request):
        text = Path(request).read_text(encoding="utf-8", errors="replace")
        return re.search(r"^\W*group\W*:", text, flags=re.MULTILINE) is None
    return request in local.all_subtasks


def _matches(request: str, manager: TaskManager) -> list[str]:
    if is_task_file(request) or request in manager.all_tasks:
        return [request]
    # if a pattern matched groups too, their tasks would be evaluated twice
    return fnmatch.filter(manager.all_subtasks, request) or fnmatch.filter(
        manager.all_tasks, request
    )


def _build(manager: TaskManager, names: Sequence[str]) -> TaskDict:
    """Creates the tasks, which loads their data."""
    objects: list[Any] = []
    for name in names:
        try:
            loaded = manager.load([name])
        except Exception as error:  # a task's file or code, or a download, may raise anything
            raise ConfigError(f"eval_tasks: {name}: {_explain(error)}") from error
        groups = loaded.get("groups", {})
        inner = {child for children in loaded.get("group_map", {}).values() for child in children}
        tops = [group for group in groups if group not in inner]
        objects.extend(groups[top] for top in tops)
        if not tops:
            objects.extend(loaded["tasks"].values())
    try:
        tasks = manager.load(objects)
    except ValueError as error:
        raise ConfigError(f"eval_tasks: {_one_line(error)}; leave one of them out") from None
    for name, task in tasks["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise ConfigError(
                f"eval_tasks: {name} runs code that the model writes, which this program does "
                "not support; export the model and run lm-eval where that is safe"
            )
        if getattr(task, "MULTIMODAL", False):
            raise ConfigError(f"eval_tasks: {name} needs input other than text; leave it out")
    return tasks


def _check_generation(tasks: TaskDict, *, window: int) -> None:
    """Refuses settings that would end an evaluation or a training at the first generated text."""
    for name, task in tasks["tasks"].items():
        if task.OUTPUT_TYPE != "generate_until":
            continue
        try:
            read_settings(task.get_config("generation_kwargs") or {}).longest_context(window)
        except TaskError as error:
            raise ConfigError(f"eval_tasks: {name}: {error}") from error


def _explain(error: BaseException) -> str:
    """One line about a task whose file or data cannot be read."""
    chain = f"{type(error).__name__} {error} {error.__cause__!r} {error.__context__!r}".lower()
    problem = f"{type(error).__name__}: {_one_line(error)}"
    if any(word in chain for word in _NO_NETWORK):
        return (
            f"its data are not on this machine and cannot be downloaded ({problem}); run once "
            "with a network and the same HF_HOME, or name a local task"
        )
    return f"its file or data cannot be read ({problem}); correct the task's file"


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return text if len(text) <= 240 else f"{text[:237]}..."
