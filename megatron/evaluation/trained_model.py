"""A trained model for inference: no optimizer, no engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from megatron.checkpoint.copies import fetch_checkpoint
from megatron.checkpoint.format import read_resolved_config
from megatron.checkpoint.loading import first_not_finite, load_module_weights
from megatron.checkpoint.opening import load_run_state
from megatron.engine.build import build_model
from megatron.engine.chosen_checkpoint import with_checkpoint
from megatron.errors import CheckpointError
from megatron.model.gpt2_model import GPT2Model
from megatron.model.parameters import DTYPES
from megatron.mpu import Topology
from megatron.neox_arguments import ConfigError, RunConfig
from megatron.reporting.run_logger import print_rank_0
from megatron.runtime import accelerator
from megatron.runtime.agreement import agree
from megatron.tokenizer import AbstractTokenizer, build_tokenizer

__all__ = ["LoadedModel", "load_for_inference", "open_checkpoint", "read_model"]


@dataclass(frozen=True)
class LoadedModel:
    """A model with the weights of a checkpoint."""

    model: GPT2Model
    """The model, in evaluation mode."""
    tokenizer: AbstractTokenizer
    topology: Topology
    iteration: int
    """Training iterations done when the checkpoint was saved."""
    train_batch_size: int | None = None
    """Samples per iteration of the run that saved it; None if the checkpoint does not tell."""


def load_for_inference(
    config: RunConfig, topology: Topology
) -> tuple[GPT2Model, AbstractTokenizer]:
    """The model that `open_checkpoint` loads, and its tokenizer."""
    loaded = open_checkpoint(config, topology)
    return loaded.model, loaded.tokenizer


def open_checkpoint(config: RunConfig, topology: Topology) -> LoadedModel:
    """Loads the checkpoint that ``load`` and ``iteration`` name, of any layout.

    Raises:
        ConfigError: If ``load`` is not set.
        CheckpointError: If there is no checkpoint, or the checkpoint is of another model.
    """
    if config.saving.load_path is None:
        raise ConfigError("load: is not set; set it to the checkpoint folder of the model")
    tokenizer = build_tokenizer(config)
    fetch_checkpoint(config, print_rank_0)

    def read(folder: Path | None) -> tuple[GPT2Model, Path]:
        assert folder is not None
        return read_model(config, tokenizer, topology, folder=folder), folder

    model, folder = with_checkpoint(config, print_rank_0, read, for_training=False)
    state, _ = load_run_state(folder)
    trained_as = read_resolved_config(folder) or {}
    return LoadedModel(
        model,
        tokenizer,
        topology,
        int(state["counters"]["step"]),
        trained_as.get("batch", {}).get("train_batch_size"),
    )


def read_model(
    config: RunConfig, tokenizer: AbstractTokenizer, topology: Topology, *, folder: Path
) -> GPT2Model:
    """Builds the model and fills it from the checkpoint ``folder``.

    The model is in evaluation mode and in the precision of the configuration; fp16 becomes float32
    if the device does not support it.

    Args:
        config: The resolved configuration.
        tokenizer: The tokenizer that the model was trained with.
        topology: The ranks that share the model; no pipeline stages, see `make_topology`.
        folder: A ``global_step<N>`` folder.

    Raises:
        CheckpointError: On every rank, if names or shapes differ, if the weights are those of
            another network, or if some are not finite.
    """
    model = build_model(config, tokenizer, topology, for_training=False)
    assert isinstance(model, GPT2Model)
    precision = config.precision.dtype
    dtype = DTYPES[precision] if accelerator.supports(precision) else torch.float32
    load_module_weights(model, folder, topology, dtype=dtype, device=accelerator.device())
    model = model.to(accelerator.device()).eval()
    _check_finite(model, folder, dtype)
    return model


def _check_finite(model: GPT2Model, folder: Path, dtype: torch.dtype) -> None:
    """Checks the weights after the cast: a weight that is too large for fp16 has become infinite.

    With tensor parallelism only one rank may hold such a value, but all ranks have to raise.
    """
    if name := agree(first_not_finite(model)):
        fp16 = ", or too large for fp16" if dtype == torch.float16 else ""
        raise CheckpointError(
            f"{folder}: {name} has values that are not finite{fp16}; the model has diverged: "
            "choose an earlier checkpoint with iteration, or another model"
        )
