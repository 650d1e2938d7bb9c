"""Our network in one process: its parameters, and loading it from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from megatron.checkpoint.foreign import is_neox_checkpoint
from megatron.checkpoint.format import CheckpointReader, ParameterInfo
from megatron.checkpoint.neox.reader import NeoxReader
from megatron.errors import CheckpointError
from megatron.model.gpt2_model import GPT2Model, layer_list
from megatron.model.parameters import allocate, cut_shard, spec_of
from megatron.model.relative_bias import SHARED_BIAS, make_relative_bias
from megatron.model.soft_prompt import SOFT_PROMPT_NAME
from megatron.sizing.model_shape import EMBEDDING_NAMES, ModelShape
from tools.hf.settings import RunSettings

__all__ = [
    "check_parameters",
    "filled_model",
    "open_parameters",
    "parameter_infos",
    "true_vocab_size",
]


def open_parameters(
    folder: Path, settings: RunSettings, *, with_optimizer: bool = False
) -> tuple[CheckpointReader | NeoxReader, ModelShape]:
    """A checkpoint of ours or of GPT-NeoX, and its network without padding of the vocabulary.

    Args:
        folder: A ``global_step<N>`` folder.
        settings: Configuration of the run. The size of a GPT-NeoX model's vocabulary is that of the
            tokenizer, since its matrices are padded.
        with_optimizer: Whether to read the states of the optimizer of a GPT-NeoX checkpoint.

    Raises:
        CheckpointError: If the checkpoint is damaged or belongs to another configuration.
        TokenizerError: If the tokenizer is needed and cannot be built.
    """
    reader: CheckpointReader | NeoxReader
    if is_neox_checkpoint(folder):
        shape = settings.shape(settings.tokenizer().vocab_size)
        reader = NeoxReader(folder, shape, with_optimizer=with_optimizer)
    else:
        reader = CheckpointReader(folder)
        shape = settings.shape(true_vocab_size(reader))
    check_parameters(folder, reader.shapes, parameter_infos(shape))
    return reader, shape


def true_vocab_size(reader: CheckpointReader) -> int:
    """Rows of a checkpoint's embedding, which never contain padding.

    Raises:
        CheckpointError: If it has none.
    """
    for name in EMBEDDING_NAMES:
        if parameter := reader.parameters.get(f"{name}.word_embeddings.weight"):
            return parameter.shape[0]
    raise CheckpointError(f"{reader.folder}: contains no word embedding")


def parameter_infos(shape: ModelShape) -> dict[str, ParameterInfo]:
    """Description of every parameter as one process saves it; allocates nothing."""
    infos: dict[str, ParameterInfo] = {}
    with torch.device("meta"):
        bias = make_relative_bias(shape)
        layers = {number: kind(*args) for number, (kind, args) in layer_list(shape).items()}
    modules = {str(number or shape.embedding_name): layer for number, layer in layers.items()}
    if isinstance(bias, nn.Module):
        modules[SHARED_BIAS] = bias
    for prefix, module in modules.items():
        for name, parameter in module.named_parameters():
            spec = spec_of(parameter)
            extent = spec.shard_shape[spec.tp_dim or 0]
            infos[f"{prefix}.{name}"] = ParameterInfo(spec.logical_shape, spec.tp_dim, extent)
    return infos


def check_parameters(
    folder: Path, found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, ParameterInfo]
) -> None:
    """Compares a checkpoint with what the configuration describes.

    Raises:
        CheckpointError: Naming the first parameter that differs.
    """
    if SOFT_PROMPT_NAME in found.keys() - wanted.keys():
        raise CheckpointError(
            f"{folder}: has a soft prompt ({SOFT_PROMPT_NAME}), which no class of transformers "
            "contains; export the model that it was trained for, from its own checkpoint"
        )
    for name in sorted(found.keys() ^ wanted.keys()):
        which = "contains" if name in found else "lacks"
        other = "lacks" if name in found else "has"
        raise CheckpointError(
            f"{folder}: {which} {name}, which the configured model {other}; the checkpoint "
            "belongs to another configuration"
        )
    for name, info in wanted.items():
        if found[name] != info.shape:
            raise CheckpointError(
                f"{folder}: {name} has shape {found[name]}, the configured model needs "
                f"{info.shape}; the checkpoint belongs to another configuration"
            )


def filled_model(shape: ModelShape, read: Callable[[str], Tensor]) -> GPT2Model:
    """Our network in evaluation mode, float32; ``read`` returns weights in their logical shape."""
    model = GPT2Model(shape, seed=None)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            allocate(parameter)
            parameter.copy_(cut_shard(read(name), spec_of(parameter), 0))
    return model.eval()
