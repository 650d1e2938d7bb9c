"""Reads files of ``torch.save`` without running anything that they contain.

Checkpoints of GPT-NeoX have more than tensors in some of their files: random states of numpy, loss
scalers of DeepSpeed, in old ones an ``argparse.Namespace``. The unpickler of ``weights_only``
imports no class that a file names. Here each unknown class becomes an `Unread` object, which keeps
plain data and does nothing.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from megatron.errors import CheckpointError
from megatron.files import is_lfs_pointer

__all__ = ["Unread", "is_dense", "read_torch_file"]

_KNOWN_CLASSES = (
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.ndarray",
    "numpy.dtype",
    "argparse.Namespace",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
)
"""Harmless classes in files of the form before torch 1.6, whose names torch does not list."""
_MAX_REASON = 160
_PICKLE = b"\x80"
"""First byte of a pickle of protocol 2 and later, with which files before torch 1.6 begin."""


class Unread:
    """Stands for an object of a class that was not imported."""

    state: Any = None
    """The attributes that the file gives the object; plain data."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Unread:
        """Ignores what the class would be called with."""
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        """As `__new__`."""

    def __setstate__(self, state: Any) -> None:
        """Keeps the attributes as data."""
        self.state = state


def read_torch_file(path: Path) -> Any:
    """Reads a file of ``torch.save``; tensors stay in the file until they are used.

    Files of the form before torch 1.6 cannot be mapped, so they are read into the memory.

    Raises:
        CheckpointError: If the file is missing, cut, damaged or of another kind.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: is missing")
    if is_lfs_pointer(path):
        raise CheckpointError(
            f"{path}: is a pointer of Git LFS, not the file itself; run git lfs pull"
        )
    try:
        with path.open("rb") as stream:
            begin = stream.read(4)
        is_mapped = begin == b"PK\x03\x04"  # a zip archive, even if it is cut
        if begin and not is_mapped and begin[:1] != _PICKLE:
            raise ValueError(f"begins with {begin!r}")
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path) if is_mapped else ()
        classes: list[Any] = [(Unread, name) for name in {*names, *_KNOWN_CLASSES}]
        with torch.serialization.safe_globals(classes), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the form of old files
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)
    except Exception as error:  # a damaged file makes torch raise errors of many classes
        raise CheckpointError(
            f"{path}: is cut, damaged or not a file of torch.save ({_reason(error)}); copy it again"
        ) from error


def is_dense(value: Any) -> bool:
    """Whether a value is a tensor with all of its elements, not sparse, quantized or complex."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and not value.is_quantized
        and not value.is_complex()
    )


def _reason(error: Exception) -> str:
    """What torch says, without its advice to load the file with less care."""
    text = " ".join(str(error).rpartition("WeightsUnpickler error: ")[2].split())
    text = text.partition(". ")[0] or type(error).__name__
    return text if len(text) <= _MAX_REASON else f"{text[:_MAX_REASON]}..."
