"""The files of a GPT-NeoX checkpoint: which there are, and what they contain before any merging.

```
global_step<N>/
  layer_<LL>-model_<MM>-model_states.pt      with pipeline stages: layer L of model-parallel part M
  mp_rank_<RR>_model_states.pt               counters; without stages also all layers of part R
  (bf16_)zero_pp_rank_<D>_mp_rank_<RR>_optim_states.pt      ZeRO: optimizer states
  zero_pp_rank_<D>_mp_rank_<RR>_model_states.pt      ZeRO 3: counters and shapes, no weights
  configs/*.yml                              configuration files as given
```
Layers have the numbers of `megatron.model.gpt2_model`. With stages R = stage * parts + M. ZeRO 3
leaves the weights to the files with optimizer states; of its other files the first says all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron.checkpoint.neox.torch_file import is_dense, read_torch_file
from megatron.errors import CheckpointError

__all__ = ["NeoxFolder", "PartsOfLayer", "is_shape", "param_shapes"]

PartsOfLayer = list[dict[str, Tensor]]
"""The tensors of a layer by name, one entry per model-parallel part."""

_LAYER = re.compile(r"layer_(\d{2,6})(?:-model_(\d{2,6}))?-model_states\.pt")
_RANK = re.compile(r"mp_rank_(\d{2,6})_model_states\.pt")
_OPTIMIZER = re.compile(r"(?:bf16_)?zero_pp_rank_(\d{1,6})_mp_rank_(\d{2,6})_optim_states\.pt")
_PARTITIONED = re.compile(r"zero_pp_rank_(\d{1,6})_mp_rank_(\d{2,6})_model_states\.pt")
_MAX_ELEMENTS = 1 << 48
_LAYER_NAME = re.compile(r"(?:(?:sequential\.)?(\d{1,6})|tied_modules\.embed)\.(.+)")


class NeoxFolder:
    """A ``global_step<N>`` folder of GPT-NeoX; files are opened when they are needed.

    Raises:
        CheckpointError: If files are missing, or are of two checkpoints.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._rank_files: dict[int, Path] = {}
        self._optimizer_files: dict[int, dict[int, Path]] = {}
        self._layer_files: dict[int, dict[int, Path]] = {}
        partitioned: dict[int, Path] = {}
        for path in sorted(folder.iterdir()):
            if match := _LAYER.fullmatch(path.name):
                self._layer_files.setdefault(int(match[1]), {})[int(match[2] or 0)] = path
            elif match := _RANK.fullmatch(path.name):
                self._rank_files[int(match[1])] = path
            elif match := _OPTIMIZER.fullmatch(path.name):
                self._optimizer_files.setdefault(int(match[2]), {})[int(match[1])] = path
            elif match := _PARTITIONED.fullmatch(path.name):
                first = f"zero_pp_rank_0_mp_rank_{match[2]}_model_states.pt"
                partitioned.setdefault(int(match[2]), folder / first)
        self.is_partitioned = bool(partitioned)
        """Whether ZeRO 3 saved it: the weights are in the files with optimizer states."""
        if self.is_partitioned:
            for path in (*self._rank_files.values(), *self._paths_of_layers()):
                raise CheckpointError(
                    f"{path}: has whole weights, beside files of ZeRO 3, which are of another "
                    "checkpoint; remove the files of one of them"
                )
            self._rank_files = partitioned
        self._opened: dict[Path, Any] = {}
        self._modules: list[dict[int, dict[str, Tensor]]] | None = None
        if not self._layer_files and not self._rank_files:
            raise CheckpointError(
                f"{folder}: has no layer_<LL>-model_<MM>-model_states.pt and no "
                "mp_rank_<RR>_model_states.pt; the checkpoint is incomplete"
            )
        self.num_parts = self._count_parts()
        """Model-parallel parts that each layer is cut into."""

    @property
    def paths(self) -> list[Path]:
        """All files with weights or counters, in a fixed order."""
        more: list[Path] = []
        if self.is_partitioned:
            more = [path for ranks in self._optimizer_files.values() for path in ranks.values()]
        return sorted((*self._paths_of_layers(), *self._rank_files.values(), *more))

    @property
    def rank_files(self) -> dict[int, Path]:
        """Number of a model rank, pipeline stage * parts + part -> its file with counters."""
        return self._rank_files

    @property
    def optimizer_files(self) -> dict[int, dict[int, Path]]:
        """Number of a model rank -> data-parallel rank -> its file with optimizer states."""
        return self._optimizer_files

    @property
    def layers(self) -> list[int]:
        """Numbers of the layers that have tensors, ascending."""
        if self._layer_files:
            return sorted(self._layer_files)
        return sorted({number for module in self._split_modules() for number in module})

    def file_of(self, layer: int, part: int) -> Path:
        """The file with a part of a layer, for messages."""
        if self._layer_files:
            name = f"layer_{layer:02d}-model_{part:02d}-model_states.pt"
            return self._layer_files.get(layer, {}).get(part, self.folder / name)
        return self._rank_files[part]

    def parts_of(self, layer: int) -> PartsOfLayer:
        """The tensors of a layer by GPT-NeoX's names, one entry per part; floating point only.

        Raises:
            CheckpointError: If a file cannot be read, or the parts do not fit together.
        """
        parts = range(self.num_parts)
        if self._layer_files:
            found = [_tensors(self.read(path), path) for path in self._paths_of(layer)]
        else:
            found = [self._split_modules()[part].get(layer, {}) for part in parts]
        first = {name: tensor.shape for name, tensor in found[0].items()}
        for part in parts[1:]:
            shapes = {name: tensor.shape for name, tensor in found[part].items()}
            for name in sorted(first.keys() | shapes.keys()):
                if first.get(name) != shapes.get(name):
                    one, other = (_shown(known.get(name)) for known in (first, shapes))
                    raise CheckpointError(
                        f"{self.file_of(layer, part)}: {name} has {other}, part 0 has {one}; the "
                        "files are of different checkpoints"
                    )
        return found

    def counters(self) -> Mapping[str, Any]:
        """The content of the first ``mp_rank`` file; empty if there is none."""
        if not self._rank_files:
            return {}
        return self.content_of(min(self._rank_files))

    def content_of(self, rank: int) -> Mapping[str, Any]:
        """What the file with counters of a model rank contains."""
        path = self._rank_files[rank]
        content = self.read(path)
        if not isinstance(content, Mapping):
            raise CheckpointError(f"{path}: does not contain the state of a model rank")
        return content

    def read(self, path: Path) -> Any:
        """A file's content; its tensors stay on the disk until they are used."""
        if path not in self._opened:
            self._opened[path] = read_torch_file(path)
        return self._opened[path]

    def check(self, *, part: int = 0, num_parts: int = 1) -> None:
        """Opens every ``num_parts``-th file, from number ``part`` on; tensors are not read.

        Raises:
            CheckpointError: Naming the first file that is cut, damaged or of another kind.
        """
        own = self.paths[part::num_parts]
        for path in own:
            content = self.read(path)
            if _LAYER.fullmatch(path.name):
                _tensors(content, path)
        if part == 0 and not self._layer_files:
            self._split_modules()

    def _count_parts(self) -> int:
        if self._layer_files:
            num_parts = 1 + max(part for parts in self._layer_files.values() for part in parts)
            for layer in self._layer_files:
                self._paths_of(layer, num_parts)
            return num_parts
        for number in range(1 + max(self._rank_files)):
            if number not in self._rank_files:
                prefix = "zero_pp_rank_0_" if self.is_partitioned else ""
                name = f"{prefix}mp_rank_{number:02d}_model_states.pt"
                raise CheckpointError(f"{self.folder / name}: is missing")
        return len(self._rank_files)

    def _paths_of_layers(self) -> list[Path]:
        return [path for parts in self._layer_files.values() for path in parts.values()]

    def _paths_of(self, layer: int, num_parts: int | None = None) -> list[Path]:
        parts = self._layer_files.get(layer, {})
        for part in range(self.num_parts if num_parts is None else num_parts):
            if part not in parts:
                raise CheckpointError(f"{self.file_of(layer, part)}: is missing")
        return [parts[part] for part in sorted(parts)]

    def _split_modules(self) -> list[dict[int, dict[str, Tensor]]]:
        """Part -> layer -> tensors, from files without pipeline stages."""
        if self._modules is None:
            self._modules = []
            for part in range(self.num_parts):
                content, path = self.content_of(part), self._rank_files[part]
                module = (_empty_module if self.is_partitioned else _module)(content, path)
                self._modules.append(dict(_layers_in(module, path)))
        return self._modules


def _module(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The tensors of all layers by name."""
    if content.get("module") is None:
        raise CheckpointError(
            f"{path}: has no weights, and there are no layer_<LL>-model_<MM>-model_states.pt "
            "beside it; copy the files of the layers too"
        )
    return _tensors(content["module"], path)


def _empty_module(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Tensors without data in the shapes of the weights that ZeRO 3 has elsewhere."""
    shapes = param_shapes(content)
    if shapes is None:
        raise CheckpointError(
            f"{path}: has no param_shapes, without which weights that ZeRO 3 partitioned cannot be "
            "put together; load the checkpoint in GPT-NeoX and save it with ZeRO stage 1"
        )
    module: dict[str, Tensor] = {}
    for name, shape in (item for group in shapes for item in group.items()):
        if not isinstance(name, str) or not is_shape(shape):
            raise CheckpointError(f"{path}: {name!r} is no parameter with a shape")
        module[name] = torch.empty(shape, device="meta")
    return module


def param_shapes(content: Mapping[str, Any]) -> list[Mapping[Any, Any]] | None:
    """Per group of parameters {name: shape}, as DeepSpeed saves it; None if there is no such."""
    groups = content.get("param_shapes")
    if not isinstance(groups, (list, tuple)) or not all(isinstance(g, Mapping) for g in groups):
        return None
    return list(groups)


def is_shape(value: Any) -> bool:
    """Whether a value is the shape of a tensor, not larger than any that there is."""
    return (
        isinstance(value, (tuple, list))
        and all(type(size) is int and 0 <= size for size in value)
        and math.prod(value) <= _MAX_ELEMENTS
    )


def _layers_in(module: Mapping[str, Tensor], path: Path) -> Iterator[tuple[int, dict[str, Tensor]]]:
    layers: dict[int, dict[str, Tensor]] = {}
    for name, tensor in module.items():
        match = _LAYER_NAME.fullmatch(name)
        if match is None:
            raise CheckpointError(
                f"{path}: has {name!r}, which is not the name of a layer's tensor"
            )
        layers.setdefault(int(match[1] or 0), {})[match[2]] = tensor
    return iter(layers.items())


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """The floating-point tensors of a state dict; other buffers, such as masks, do not count."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: does not contain the tensors of a layer")
    tensors: dict[str, Tensor] = {}
    for name, value in content.items():
        if not isinstance(name, str):
            raise CheckpointError(f"{path}: has {name!r} where the name of a tensor belongs")
        if not isinstance(value, Tensor):
            if value is not None and "_extra_state" not in name:
                raise CheckpointError(f"{path}: {name} is no tensor")
        elif not is_dense(value):
            raise CheckpointError(f"{path}: {name} is a tensor of an unknown kind")
        elif value.is_floating_point():
            tensors[name] = value
    return tensors


def _shown(shape: tuple[int, ...] | None) -> str:
    return "no such tensor" if shape is None else f"the shape {tuple(shape)}"
