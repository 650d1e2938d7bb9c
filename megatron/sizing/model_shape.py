"""The network of a run with the vocabulary that its tokenizer gives it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron.neox_arguments.sections import Model

if TYPE_CHECKING:
    from megatron.neox_arguments import RunConfig

__all__ = ["EMBEDDING_NAMES", "ModelShape", "model_shape"]

EMBEDDING_NAMES = ("0", "tied_modules.embed")
"""Modules that may hold the word embedding: the first layer, or what the output layer shares."""


@dataclass(frozen=True, kw_only=True)
class ModelShape(Model):
    """The section `model` of a configuration, and the size of its vocabulary."""

    vocab_size: int
    """Token ids the tokenizer can produce. Only these take part in the softmax."""
    padded_vocab_size: int
    """Rows of the embedding matrices; rows from ``vocab_size`` on are zero and never read."""

    @property
    def qkv_size(self) -> int:
        """Width of the fused projection to queries, keys and values."""
        return (self.num_attention_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def embedding_name(self) -> str:
        """Name of the module that holds the word embedding."""
        return EMBEDDING_NAMES[0 if self.no_weight_tying else 1]

    @property
    def num_norms(self) -> int:
        """Number of norms with their own parameters in a block."""
        return 1 if self.gpt_j_residual and self.gpt_j_tied else 2


def model_shape(config: RunConfig, *, vocab_size: int, padded_vocab_size: int) -> ModelShape:
    """Adds the vocabulary to the network of a configuration.

    Args:
        config: The resolved configuration.
        vocab_size: Number of token ids of the tokenizer.
        padded_vocab_size: Rows of the embedding matrices, at least ``vocab_size``.
    """
    return ModelShape(
        **vars(config.model), vocab_size=vocab_size, padded_vocab_size=padded_vocab_size
    )
