"""Floating-point operations of a decoder, counted from its shapes."""

from __future__ import annotations

from typing import Any

__all__ = ["flops_per_token", "forward_flops_per_token", "model_flops_per_token"]


def forward_flops_per_token(
    *,
    num_layers: int,
    hidden_size: int,
    num_attention_heads: int,
    num_kv_heads: int,
    head_dim: int,
    mlp_inner_size: int,
    is_gated_mlp: bool,
    vocab_size: int,
    seq_length: int,
) -> float:
    """Counts the forward pass for one token, on average over a sequence.

    A multiplication and an addition are two operations; only matrix products are counted. The
    *causal-half* convention: a token attends to ``seq_length / 2`` tokens on average, so scores and
    values cost ``2 * 2 * (seq_length / 2) * num_attention_heads * head_dim`` a layer. Counting the
    masked half too, as GPT-NeoX's own log does, gives 12 % more for an 8B model at 8192 tokens:
    compare figures of one convention only.

    Args:
        num_layers: Transformer layers, all alike.
        hidden_size: Width of the residual stream.
        num_attention_heads: Query heads.
        num_kv_heads: Key and value heads; fewer than query heads under grouped-query attention.
        head_dim: Width of a head.
        mlp_inner_size: Inner width of the MLP.
        is_gated_mlp: Whether the MLP has a third matrix, as in SwiGLU.
        vocab_size: Rows of the unembedding that are computed. The embedding is a lookup: free.
        seq_length: Tokens in a sample.

    Returns:
        Operations per token.
    """
    query_and_output = 2 * 2 * hidden_size * num_attention_heads * head_dim
    key_and_value = 2 * 2 * hidden_size * num_kv_heads * head_dim
    attention = 2 * seq_length * num_attention_heads * head_dim
    mlp = 2 * hidden_size * mlp_inner_size * (3 if is_gated_mlp else 2)
    unembedding = 2 * hidden_size * vocab_size
    return float(num_layers * (query_and_output + key_and_value + attention + mlp) + unembedding)


def flops_per_token(
    *,
    num_layers: int,
    hidden_size: int,
    num_attention_heads: int,
    num_kv_heads: int,
    head_dim: int,
    mlp_inner_size: int,
    is_gated_mlp: bool,
    vocab_size: int,
    seq_length: int,
) -> float:
    """Counts forward and backward for one token: three times `forward_flops_per_token`.

    The backward pass has two products for each of the forward's. What activation checkpointing
    computes again is not counted: these are the model's operations, not the machine's.
    """
    return 3.0 * forward_flops_per_token(
        num_layers=num_layers,
        hidden_size=hidden_size,
        num_attention_heads=num_attention_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        mlp_inner_size=mlp_inner_size,
        is_gated_mlp=is_gated_mlp,
        vocab_size=vocab_size,
        seq_length=seq_length,
    )


def model_flops_per_token(config: Any, *, vocab_size: int) -> float:
    """Calls `flops_per_token` with the shapes of a ``RunConfig``.

    Args:
        config: The resolved configuration.
        vocab_size: Rows of the unembedding, padding included.
    """
    derived = config.derived
    return flops_per_token(
        num_layers=config.model.num_layers,
        hidden_size=config.model.hidden_size,
        num_attention_heads=config.model.num_attention_heads,
        num_kv_heads=derived.num_kv_heads,
        head_dim=derived.head_dim,
        mlp_inner_size=derived.mlp_inner_size,
        is_gated_mlp=derived.is_gated_mlp,
        vocab_size=vocab_size,
        seq_length=config.model.seq_length,
    )
