"""The sizes of a network that decide how many parameters and operations it has."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megatron.neox_arguments import RunConfig

__all__ = ["ModelShape", "model_shape"]


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Field names are those of the YAML files, or of ``config.derived``."""

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
    norm: str = "layernorm"
    gpt_j_residual: bool = False
    gpt_j_tied: bool = False
    use_bias_in_norms: bool = True
    use_bias_in_attn_linear: bool = True
    use_bias_in_mlp: bool = True
    no_weight_tying: bool = False

    @property
    def qkv_size(self) -> int:
        """Width of the fused projection to queries, keys and values."""
        return (self.num_attention_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def num_norms(self) -> int:
        """Number of norms with their own parameters in a block."""
        return 1 if self.gpt_j_residual and self.gpt_j_tied else 2


def model_shape(config: RunConfig, *, vocab_size: int, padded_vocab_size: int) -> ModelShape:
    """Selects the sizes from a resolved run configuration.

    Args:
        config: The resolved configuration.
        vocab_size: Number of token ids of the tokenizer.
        padded_vocab_size: Rows of the embedding matrices, at least ``vocab_size``.
    """
    sizes: dict[str, Any] = {
        "vocab_size": vocab_size,
        "padded_vocab_size": padded_vocab_size,
    }
    for name in (field.name for field in fields(ModelShape) if field.name not in sizes):
        source = config.derived if hasattr(config.derived, name) else config.model
        sizes[name] = getattr(source, name)
    return ModelShape(**sizes)
