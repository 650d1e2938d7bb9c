"""The numbers that define a GPT-NeoX network, independent of how it is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron.neox_arguments import RunConfig

__all__ = ["ModelConfig", "model_config"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape and arithmetic of the network; field names are those of the YAML files."""

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_inner_size: int
    is_gated_mlp: bool
    max_position_embeddings: int
    vocab_size: int
    """Token ids the tokenizer can produce. Only these take part in the softmax."""
    padded_vocab_size: int
    """Rows of the embedding matrices; rows from ``vocab_size`` on are zero and never read."""
    pos_emb: str = "rotary"
    rotary_dim: int = 0
    rotary_emb_base: float = 10000.0
    norm: str = "layernorm"
    norm_epsilon: float = 1e-5
    activation: str = "gelu"
    bias_gelu_fusion: bool = False
    """GPT-NeoX's fused kernel is the tanh approximation of gelu: the flag chooses the formula."""
    gpt_j_residual: bool = False
    gpt_j_tied: bool = False
    use_bias_in_norms: bool = True
    use_bias_in_attn_linear: bool = True
    use_bias_in_mlp: bool = True
    apply_query_key_layer_scaling: bool = False
    no_weight_tying: bool = False
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    init_method: str = "normal"
    output_layer_init_method: str = "scaled_normal"
    init_method_std: float = 0.02
    checkpoint_num_layers: int = 0
    """Layers a recomputed chunk; 0 keeps every activation."""
    z_loss: float = 0.0


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
    assert model.num_layers is not None  # resolve() requires these four
    assert model.hidden_size is not None
    assert model.num_attention_heads is not None
    assert model.max_position_embeddings is not None
    return ModelConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_kv_heads=derived.num_kv_heads,
        head_dim=derived.head_dim,
        mlp_inner_size=derived.mlp_inner_size,
        is_gated_mlp=derived.is_gated_mlp,
        max_position_embeddings=model.max_position_embeddings,
        vocab_size=vocab_size,
        padded_vocab_size=padded_vocab_size,
        pos_emb=model.pos_emb,
        rotary_dim=derived.rotary_dim,
        rotary_emb_base=model.rotary_emb_base,
        norm=model.norm,
        norm_epsilon=getattr(model, _NORM_EPSILON_FIELD[model.norm]),
        activation=derived.activation,
        bias_gelu_fusion=model.bias_gelu_fusion,
        gpt_j_residual=model.gpt_j_residual,
        gpt_j_tied=model.gpt_j_tied,
        use_bias_in_norms=model.use_bias_in_norms,
        use_bias_in_attn_linear=model.use_bias_in_attn_linear,
        use_bias_in_mlp=model.use_bias_in_mlp,
        no_weight_tying=model.no_weight_tying,
        hidden_dropout=training.hidden_dropout,
        attention_dropout=training.attention_dropout,
        init_method=model.init_method,
        output_layer_init_method=model.output_layer_init_method,
        init_method_std=model.init_method_std,
        checkpoint_num_layers=training.checkpoint_num_layers
        if training.checkpoint_activations
        else 0,
    )
