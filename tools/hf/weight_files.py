"""The weight files of a model folder of transformers, read tensor by tensor."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron.errors import CheckpointError
from megatron.files import is_lfs_pointer
from odm.json_data import fields, mapping_of, read_json, text
from odm.wording import shown

__all__ = ["WeightFiles"]

_INDEX = fields(
    {
        "weight_map": mapping_of(
            text(r"(?!\.{1,2}$)[^/\x00-\x1f]+", must="the name of a file beside it")
        )
    }
)
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
        """One tensor as stored; of numbers with a point."""
        tensor = self._of_file(name, lambda file: file.get_tensor(name))
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"{self.folder}: {name} has the type {tensor.dtype}, which no weight has"
            )
        return tensor

    def read_rows(self, name: str, first: int, end: int) -> Tensor:
        """Rows [first, end) of a tensor as stored; of a single number, the number."""
        if not self.shape(name):
            return self._of_file(name, lambda file: file.get_tensor(name))
        return self._of_file(name, lambda file: file.get_slice(name)[first:end])

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return self._of_file(name, lambda file: tuple(file.get_slice(name).get_shape()))

    def _of_file(self, name: str, read: Callable[[Any], Any]) -> Any:
        """What ``read`` takes from the file of a tensor; CheckpointError if it cannot."""
        file = self._open(self._file_of[name])
        try:
            return read(file)
        except (KeyError, OSError, SafetensorError, TypeError) as error:
            raise CheckpointError(
                f"{self.folder / self._file_of[name]}: {name}: cannot be read ({error})"
            ) from error

    def _find(self) -> dict[str, str]:
        """{tensor: file}."""
        for kind in KINDS:
            if (self.folder / kind).is_file():
                return dict.fromkeys(self._open(kind).keys(), kind)
            index = self.folder / f"{kind}.index.json"
            if index.is_file():
                content = read_json(index, _INDEX, error=CheckpointError, what="index of weights")
                return dict(content["weight_map"])
        raise CheckpointError(
            f"{self.folder}: contains no weights; looked for {', '.join(KINDS)} and their index "
            "files"
        )

    def _open(self, name: str) -> Any:
        if name not in self._open_files:
            path = self.folder / name
            if not os.path.isfile(path):  # false for a name that is too long, too
                raise CheckpointError(f"{path}: named by the index of weights but missing")
            if is_lfs_pointer(path):
                raise CheckpointError(
                    f"{path}: is a pointer of Git LFS, not the file itself; run git lfs pull"
                )
            try:
                self._open_files[name] = _open_file(path)
            except Exception as error:  # a pickle of foreign bytes may raise any class
                reason = " ".join(str(error).split()) or type(error).__name__
                raise CheckpointError(f"{path}: cannot be read ({reason})") from error
        return self._open_files[name]


class _PickledTensors:
    """The tensors of a ``.bin`` file, with the methods that safetensors files have."""

    def __init__(self, content: Any):
        """Takes what the file held.

        Raises:
            TypeError: If it is not a mapping from names to tensors with a number for each element.
        """
        if not isinstance(content, Mapping):
            raise TypeError(f"contains a {type(content).__name__}, not tensors by name")
        for name, tensor in content.items():
            if not isinstance(name, str) or not _is_whole(tensor):
                raise TypeError(f"{shown(name)}: is no tensor with a number for each element")
        self._tensors = content

    def keys(self) -> list[str]:
        """Names of the tensors."""
        return list(self._tensors)

    def get_tensor(self, name: str) -> Tensor:
        """One of them."""
        return self._tensors[name]

    def get_slice(self, name: str) -> _Sliced:
        """One of them, to be cut."""
        return _Sliced(self._tensors[name])


class _Sliced:
    def __init__(self, tensor: Tensor):
        self._tensor = tensor

    def get_shape(self) -> list[int]:
        return list(self._tensor.shape)

    def __getitem__(self, rows: slice) -> Tensor:
        return self._tensor[rows]


def _is_whole(tensor: Any) -> bool:
    """Returns whether a tensor is on the CPU, dense, and as large as its shape says.

    A file of some bytes may otherwise hold a tensor whose copy fills the memory: one number, and a
    shape of a million million.
    """
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_quantized:
        return False
    size = tensor.numel() * tensor.element_size()
    return tensor.device.type == "cpu" and size <= tensor.untyped_storage().nbytes()


def _open_file(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return safe_open(path, framework="pt")
    # weights_only: a pickle from elsewhere could run anything otherwise
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        content = torch.load(path, map_location="cpu", weights_only=True)  # from before torch 1.6
    return _PickledTensors(content)
