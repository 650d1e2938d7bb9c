"""The process state that lm-eval needs while it works for this program."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from megatron.eval_tasks.requests import NOT_INSTALLED
from megatron.neox_arguments import ConfigError

__all__ = ["import_huggingface_evaluate", "lm_eval_surroundings"]

_VARIABLES = {
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # otherwise loading a local file is reported to the hub
    "DISABLE_MULTIPROC": "1",  # no forks for standard errors: unsafe with communication threads
    "TOKENIZERS_PARALLELISM": "false",
}
_SHADOWED = "evaluate"


@contextlib.contextmanager
def lm_eval_surroundings() -> Iterator[None]:
    """The context in which lm-eval is imported, loads tasks and evaluates.

    Nothing but this program prints to standard output, and templates of tasks run in a sandbox.
    lm-eval's tasks import Hugging Face's library ``evaluate``; because a script of ours has the
    same name, the folder of that script is removed from the import path.

    Raises:
        ConfigError: If lm-eval is not installed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(NOT_INSTALLED)
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
    logging.getLogger("lm_eval.evaluator").setLevel(logging.ERROR)  # it repeats our own settings
    with _without_our_script(), contextlib.redirect_stdout(sys.stderr), _quiet_bars():
        with _sandboxed_templates():
            yield


def import_huggingface_evaluate() -> None:
    """Imports the library ``evaluate``, inside `lm_eval_surroundings`.

    Outside, the same name would import our script.
    """
    importlib.import_module(_SHADOWED)


@contextlib.contextmanager
def _without_our_script() -> Iterator[None]:
    path = list(sys.path)
    module = sys.modules.get(_SHADOWED)
    is_ours = module is not None and not hasattr(module, "__path__")  # a file, not a package
    if is_ours:
        del sys.modules[_SHADOWED]
    sys.path[:] = [p for p in path if not (Path(p or ".") / f"{_SHADOWED}.py").is_file()]
    try:
        yield
    finally:
        sys.path[:] = path
        if is_ours and module is not None:
            sys.modules[_SHADOWED] = module


@contextlib.contextmanager
def _sandboxed_templates() -> Iterator[None]:
    """Without a sandbox, a Jinja text reaches every class of Python: ``{{ x.__class__ }}``."""
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    open_to_all = utils.env
    sandbox = SandboxedEnvironment(
        loader=open_to_all.loader,
        undefined=open_to_all.undefined,
        keep_trailing_newline=open_to_all.keep_trailing_newline,
    )
    sandbox.filters.update(open_to_all.filters)
    utils.env = sandbox
    try:
        yield
    finally:
        utils.env = open_to_all


@contextlib.contextmanager
def _quiet_bars() -> Iterator[None]:
    """Shows progress bars of data sets and requests only on a terminal, and only on one rank."""
    if sys.stderr.isatty() and os.environ.get("RANK", "0") == "0":
        yield
        return
    import datasets
    from lm_eval.api import task

    was_on = datasets.is_progress_bar_enabled()
    bar = task.tqdm
    datasets.disable_progress_bars()
    task.tqdm = functools.partial(bar, disable=True)
    try:
        yield
    finally:
        task.tqdm = bar
        if was_on:
            datasets.enable_progress_bars()
