"""Floating-point operations of a decoder, counted from its shape."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron.sizing.model_shape import ModelShape, model_shape

if TYPE_CHECKING:
    from megatron.neox_arguments import RunConfig

__all__ = ["flops_per_token", "forward_flops_per_token", "mean_keys", "model_flops_per_token"]


def forward_flops_per_token(shape: ModelShape, *, seq_length: int) -> float:
    """Counts the forward pass for one token, on average over a sequence.

    A multiplication and an addition are two operations; only matrix products are counted. The
    *causal-half* convention: a token attends to ``seq_length / 2`` tokens on average, so scores and
    values cost ``2 * 2 * (seq_length / 2) * num_attention_heads * head_dim`` a layer. Counting the
    masked half too, as GPT-NeoX's own log does, gives 12 % more for an 8B model at 8192 tokens:
    compare figures of one convention only. A layer with a window attends to fewer tokens; documents
    that are hidden from each other are not counted, since their lengths are not known.

    Args:
        shape: The network. The embedding is a lookup and free; of the unembedding the
            ``vocab_size`` rows are counted, for padding is never multiplied.
        seq_length: Tokens in a sample.

    Returns:
        Operations per token.
    """
    context = shape.num_attention_heads * shape.head_dim
    projections = 2 * shape.hidden_size * (shape.qkv_size + context)
    reaches = shape.attention_reach or (None,) * shape.num_layers
    attention = sum(4 * mean_keys(reach, seq_length) * context for reach in reaches)
    mlp = 2 * shape.hidden_size * shape.mlp_inner_size * (3 if shape.is_gated_mlp else 2)
    unembedding = 2 * shape.hidden_size * shape.vocab_size
    return float(shape.num_layers * (projections + mlp) + attention + unembedding)


def mean_keys(reach: tuple[int, int] | None, seq_length: int) -> float:
    """Earlier tokens that a token of a sample attends to on average: a half without a window."""
    if reach is None:
        return seq_length / 2
    blocks, size = reach
    width = min(blocks * size + (size - 1) / 2, seq_length)
    return width - width**2 / (2 * seq_length)


def flops_per_token(shape: ModelShape, *, seq_length: int) -> float:
    """Counts forward and backward for one token: three times `forward_flops_per_token`.

    The backward pass has two products for each of the forward's. What activation checkpointing
    computes again is not counted: these are the model's operations, not the machine's.
    """
    return 3.0 * forward_flops_per_token(shape, seq_length=seq_length)


def model_flops_per_token(config: RunConfig, *, vocab_size: int) -> float:
    """Calls `flops_per_token` with the shape of a resolved configuration.

    Args:
        config: The resolved configuration.
        vocab_size: Number of token ids of the tokenizer, without padding.
    """
    shape = model_shape(config, vocab_size=vocab_size, padded_vocab_size=vocab_size)
    return flops_per_token(shape, seq_length=config.data.seq_length)
