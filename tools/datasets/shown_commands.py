"""Commands as the user would type them in the folder where they are shown."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def option(name: str, path: str | Path) -> list[str]:
    """A flag and its path, which may begin with a dash."""
    return [f"{name}={path}"] if str(path).startswith("-") else [name, str(path)]


def step_command(script: str, arguments: Sequence[str]) -> str:
    """A step of the preparation; the script is named from the root of the repository."""
    return f"$ python {shlex.quote(os.path.relpath(ROOT / script))} {shlex.join(arguments)}"


def training_command(data_yaml: Path) -> str:
    """How to train on what was prepared."""
    root = os.path.relpath(ROOT)
    launcher = os.path.join(root, "deepy.py")  # ./deepy.py in the root
    script = os.path.normpath(os.path.join(root, "train.py"))
    file = f"./{data_yaml}" if str(data_yaml).startswith("-") else str(data_yaml)
    return f"{shlex.quote(launcher)} {shlex.quote(script)} <model>.yml {shlex.quote(file)}"
