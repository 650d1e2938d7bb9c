"""A trained model for reading only: no optimizer, no engine."""

from __future__ import annotations

import torch

from megatron import accelerator
from megatron.checkpoint_loading import load_module_weights
from megatron.engine import build_model, checkpoint_to_load
from megatron.errors import CheckpointError
from megatron.logging import print_rank_0
from megatron.model.gpt2_model import GPT2Model
from megatron.mpu import Topology
from megatron.neox_arguments import ConfigError, RunConfig
from megatron.tokenizer import AbstractTokenizer, build_tokenizer

__all__ = ["load_for_inference"]

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bfloat16": torch.bfloat16}


def load_for_inference(
    config: RunConfig, topology: Topology
) -> tuple[GPT2Model, AbstractTokenizer]:
    """Loads the checkpoint that ``load`` and ``iteration`` name, of any layout.

    The model is in evaluation mode and in the precision of the configuration; where the device has
    no fp16 it is float32.

    Raises:
        ConfigError: If ``load`` is not set.
        CheckpointError: If there is no checkpoint.
    """
    if config.derived.load_path is None:
        raise ConfigError("load: set it to the checkpoint folder of the model to read")
    tokenizer = build_tokenizer(config)
    folder = checkpoint_to_load(config, print_rank_0)
    if folder is None:
        raise CheckpointError(f"load: no checkpoint in {config.derived.load_path}")
    model = build_model(config, tokenizer, topology, for_training=False)
    assert isinstance(model, GPT2Model)
    load_module_weights(model, folder, topology)
    precision = config.derived.precision
    dtype = _DTYPES[precision] if accelerator.supports(precision) else torch.float32
    return model.to(accelerator.device(), dtype).eval(), tokenizer
