"""Writes safetensors files, flushed to disk and with the same mode as other files."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from megatron.errors import CheckpointError
from megatron.files import flush_to_disk

__all__ = ["write_tensors"]


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Writes a safetensors file and flushes it to the disk.

    Safetensors makes its files readable by their owner only; here the umask decides, as for all
    other files.

    Raises:
        CheckpointError: If the disk is full.
    """
    with path.open("wb") as stream:
        mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
    try:
        save_file(dict(tensors), path, metadata=metadata)
    except SafetensorError as error:  # raised if the disk is full
        raise CheckpointError(
            f"{path}: {error}; check the free space; nothing was written"
        ) from error
    with contextlib.suppress(PermissionError):  # some file systems have no modes
        path.chmod(mode)
    with path.open("rb+") as stream:
        flush_to_disk(stream)
