"""Our network in one process: its parameters, and loading it from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from megatron.checkpoint.format import CheckpointReader, ParameterInfo
from megatron.errors import CheckpointError
from megatron.model.gpt2_model import GPT2Model, layer_list
from megatron.model.parameters import cut_shard, spec_of
from megatron.sizing.model_shape import ModelShape

__all__ = ["check_parameters", "filled_model", "parameter_infos", "true_vocab_size"]


def true_vocab_size(reader: CheckpointReader) -> int:
    """Rows of a checkpoint's embedding, which never contain padding.

    Raises:
        CheckpointError: If it has none.
    """
    for name in ("0.word_embeddings.weight", "tied_modules.embed.word_embeddings.weight"):
        if name in reader.parameters:
            return reader.parameters[name].shape[0]
    raise CheckpointError(f"{reader.folder}: holds no word embedding")


def parameter_infos(shape: ModelShape) -> dict[str, ParameterInfo]:
    """Description of every parameter as one process saves it; allocates nothing."""
    infos: dict[str, ParameterInfo] = {}
    with torch.device("meta"):
        layers = {number: kind(*args) for number, (kind, args) in layer_list(shape).items()}
    for number, layer in layers.items():
        prefix = str(number) if number or shape.no_weight_tying else "tied_modules.embed"
        for name, parameter in layer.named_parameters():
            spec = spec_of(parameter)
            extent = spec.shard_shape[spec.tp_dim or 0]
            infos[f"{prefix}.{name}"] = ParameterInfo(spec.logical_shape, spec.tp_dim, extent)
    return infos


def check_parameters(
    folder: Path, found: Mapping[str, ParameterInfo], wanted: Mapping[str, ParameterInfo]
) -> None:
    """Compares a checkpoint with what the configuration describes.

    Raises:
        CheckpointError: Naming the first parameter that differs.
    """
    for name in sorted(found.keys() ^ wanted.keys()):
        which = "contains" if name in found else "lacks"
        other = "lacks" if name in found else "has"
        raise CheckpointError(
            f"{folder}: {which} {name}, which the configured model {other}; the checkpoint "
            "belongs to another configuration"
        )
    for name, info in wanted.items():
        if found[name].shape != info.shape:
            raise CheckpointError(
                f"{folder}: {name} has shape {found[name].shape}, the configured model needs "
                f"{info.shape}; the checkpoint belongs to another configuration"
            )


def filled_model(shape: ModelShape, read: Callable[[str], Tensor]) -> GPT2Model:
    """Our network in evaluation mode, float32; ``read`` returns weights in their logical shape."""
    model = GPT2Model(shape, seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(cut_shard(read(name), spec_of(parameter), 0))
    return model.eval()
