"""Explains in one line why a program cannot start here: packages or Python; standard library only.

A program calls `explain_missing_packages` before it imports anything that is installed.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

__all__ = ["explain_missing_packages", "missing_package", "missing_packages_problem"]

_ROOT = Path(__file__).resolve().parents[2]

_OURS = ("megatron", "odm", "tools", "tests")

_EXTRAS = {
    "accelerate": "eval",
    "datasets": "eval",
    "evaluate": "eval",
    "lm_eval": "eval",
    "peft": "eval",
    "transformers": "eval",
    "sentencepiece": "sentencepiece",
    "tiktoken": "tiktoken",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "pytest": "dev",
    "hypothesis": "dev",
}
"""Package -> the extra that brings it, where that is not ``train``."""


def explain_missing_packages() -> None:
    """Makes a missing package one line and exit code 2 instead of a traceback; Ctrl-C 130.

    Ends the program at once where Python itself is too old.
    """
    if sys.version_info < (3, 10):  # noqa: UP036 - whoever has an older one should read so
        version = ".".join(map(str, sys.version_info[:3]))
        sys.stderr.write(f"{_program()}: needs Python 3.10 or newer, this is {version}\n")
        sys.exit(2)
    sys.excepthook = _explain


def missing_packages_problem(*names: str) -> str | None:
    """Returns one line for the user if one of the packages cannot be found, else None.

    Looks without importing: torch takes seconds.
    """
    missing = [name for name in names if find_spec(name) is None]
    return _problem(missing) if missing else None


def missing_package(error: BaseException) -> str | None:
    """Returns one line for the user if ``error`` is a package that is not installed, else None."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    name = error.name.partition(".")[0]
    return None if name in _OURS or name in sys.stdlib_module_names else _problem([name])


def _explain(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    problem, code = missing_package(error), 2
    if isinstance(error, KeyboardInterrupt):
        problem, code = f"{_program()}: interrupted", 130
    if problem is None:
        sys.__excepthook__(kind, error, traceback)
        return
    sys.stderr.write(f"{problem}\n")
    sys.stderr.flush()
    os._exit(code)  # an exception hook cannot choose the exit code


def _problem(missing: list[str]) -> str:
    return f"{_program()}: this Python ({sys.executable}) lacks {', '.join(missing)}; " + _remedy(
        _EXTRAS.get(missing[0], "train")
    )


def _remedy(extra: str) -> str:
    suffix = "" if extra == "train" else f"-{extra}"
    requirements = _ROOT / f"requirements/requirements{suffix}.txt"
    if not requirements.is_file():  # installed, without the sources
        return f"pip install 'odm-neox[{extra}]'"
    install = f"pip install -r {requirements}"
    venv = _ROOT / ".venv"
    if Path(sys.prefix) == venv:
        return install
    if (venv / "bin/activate").is_file():
        return f"activate the virtual environment: source {venv}/bin/activate; or {install}"
    return f"make install makes a virtual environment that has it; or {install}"


def _program() -> str:
    path = Path(sys.argv[0])
    return path.parent.name if path.name == "__main__.py" else path.name
