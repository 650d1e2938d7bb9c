"""The numbers that define a GPT-NeoX network, independent of how it is trained."""

from __future__ import annotations

from megatron.sizing.model_shape import ModelShape as ModelConfig
from megatron.sizing.model_shape import model_shape as model_config

__all__ = ["ModelConfig", "model_config"]
