"""What the program that asks for a configuration does with it."""

from __future__ import annotations

from enum import Enum
from pathlib import PurePath

_READERS = ("evaluate.py", "eval.py", "generate.py")


class Purpose(Enum):
    """Decides which rules count: a program that reads a model is not refused for its training."""

    TRAINING = "training"
    READING = "reading"
    """Evaluation, generation, conversion: a finished model is read, nothing is learned."""


def purpose_of(script: str | None) -> Purpose:
    """Returns the purpose of one of our scripts; other scripts are taken for trainings."""
    return Purpose.READING if PurePath(script or "").name in _READERS else Purpose.TRAINING


def is_training_script(script: str | None) -> bool:
    """Tells whether a script is `train.py`, which needs data, an accelerator and a folder."""
    return PurePath(script or "").name == "train.py"
