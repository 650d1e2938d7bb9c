"""The weight files of a model folder of transformers, read tensor by tensor."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron.errors import CheckpointError

__all__ = ["WeightFiles"]

KINDS = ("model.safetensors", "pytorch_model.bin")


class WeightFiles:
    """Random access to tensors by name, in safetensors or .bin files, one or several.

    Raises:
        CheckpointError: If the folder has no such file, or one of them cannot be read.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._open_files: dict[str, Any] = {}
        self._file_of = self._find()
        self.names = set(self._file_of)

    def read(self, name: str) -> Tensor:
        """One tensor as stored."""
        file = self._open(self._file_of[name])
        return file[name] if isinstance(file, dict) else file.get_tensor(name)

    def read_rows(self, name: str, first: int, end: int) -> Tensor:
        """Rows [first, end) of a tensor as stored."""
        file = self._open(self._file_of[name])
        return (file[name] if isinstance(file, dict) else file.get_slice(name))[first:end]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        file = self._open(self._file_of[name])
        if isinstance(file, dict):
            return tuple(file[name].shape)
        return tuple(file.get_slice(name).get_shape())

    def _find(self) -> dict[str, str]:
        """{tensor: file}."""
        for kind in KINDS:
            if (self.folder / kind).is_file():
                return dict.fromkeys(self._open(kind).keys(), kind)
            index = self.folder / f"{kind}.index.json"
            if index.is_file():
                try:
                    return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
                except (KeyError, TypeError, ValueError) as error:
                    raise CheckpointError(f"{index}: not an index of weights ({error})") from error
        raise CheckpointError(
            f"{self.folder}: holds no weights; looked for {', '.join(KINDS)} and their index files"
        )

    def _open(self, name: str) -> Any:
        if name not in self._open_files:
            path = self.folder / name
            if Path(name).name != name or not path.is_file():  # an index must not lead elsewhere
                raise CheckpointError(f"{path}: named by the index of weights but missing")
            try:
                self._open_files[name] = _open_file(path)
            except (SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
                raise CheckpointError(f"{path}: cannot be read ({error})") from error
        return self._open_files[name]


def _open_file(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return safe_open(path, framework="pt")
    # weights_only: a pickle from elsewhere could run anything otherwise
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        return torch.load(path, map_location="cpu", weights_only=True)  # from before torch 1.6
