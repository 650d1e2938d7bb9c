"""The numbers that define a GPT-NeoX network, independent of how it is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron.sizing.model_shape import ModelShape, model_shape

if TYPE_CHECKING:
    from megatron.neox_arguments import RunConfig

__all__ = ["ModelConfig", "model_config"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig(ModelShape):
    """Shape and arithmetic of the network."""

    rotary_dim: int = 0
    rotary_emb_base: float = 10000.0
    norm_epsilon: float = 1e-5
    activation: str = "gelu"
    bias_gelu_fusion: bool = False
    """GPT-NeoX's fused kernel is the tanh approximation of gelu: the flag chooses the formula."""
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    init_method: str = "normal"
    output_layer_init_method: str = "scaled_normal"
    init_method_std: float = 0.02
    checkpoint_num_layers: int = 0
    """Layers a recomputed chunk; 0 keeps every activation."""
    z_loss: float = 0.0
    """Weight of the squared log-normaliser in the training loss."""


_NORM_EPSILON_FIELD = {
    "layernorm": "layernorm_epsilon",
    "rmsnorm": "rms_norm_epsilon",
    "scalenorm": "scalenorm_epsilon",
}


def model_config(config: RunConfig, *, vocab_size: int, padded_vocab_size: int) -> ModelConfig:
    """Selects what the network needs from a resolved run configuration.

    Args:
        config: The resolved configuration.
        vocab_size: Number of token ids of the tokenizer.
        padded_vocab_size: Rows of the embedding matrices, at least ``vocab_size``.
    """
    model, derived, training = config.model, config.derived, config.training
    shape = model_shape(config, vocab_size=vocab_size, padded_vocab_size=padded_vocab_size)
    return ModelConfig(
        **vars(shape),
        rotary_dim=derived.rotary_dim,
        rotary_emb_base=model.rotary_emb_base,
        norm_epsilon=getattr(model, _NORM_EPSILON_FIELD[model.norm]),
        activation=derived.activation,
        bias_gelu_fusion=model.bias_gelu_fusion,
        hidden_dropout=training.hidden_dropout,
        attention_dropout=training.attention_dropout,
        init_method=model.init_method,
        output_layer_init_method=model.output_layer_init_method,
        init_method_std=model.init_method_std,
        checkpoint_num_layers=training.checkpoint_num_layers
        if training.checkpoint_activations
        else 0,
        z_loss=training.z_loss,
    )
