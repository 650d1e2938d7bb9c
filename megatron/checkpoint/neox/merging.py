"""Names of GPT-NeoX's tensors, and how model-parallel parts of a parameter become one tensor.

- Word embedding and output matrix: rows after each other; padding of the vocabulary at the end.
- Fused projection: heads after each other. With a key per query, each head is [query, key, value]
  there and here. With grouped queries a part is [its queries, its keys, its values]; here it is
  ordered by group.
- First MLP matrix: rows after each other. Gated, a part is [plain, gate], and here the gate is
  first; before September 2024 Llama's w1 is the gate and w3 the plain one.
- Attention output, second MLP matrix and relative biases: columns after each other. Each block has
  the relative biases, and all have the same.
- A norm of queries and keys: heads after each other.
- Their biases: with the parallel residual each part adds its own before the sum over parts, so they
  are summed. Otherwise they are copies.
- Norms and positions: copies; the mean if they have drifted apart, as in GPT-NeoX's own converters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from megatron.model.relative_bias import SHARED_BIAS
from megatron.sizing.model_shape import ModelShape

__all__ = ["SPLIT_GATE", "full_name", "is_cut", "is_left_out", "merge", "our_name"]

SPLIT_GATE = {"mlp.w1.weight": 0, "mlp.w3.weight": 1}
"""Halves of a gated projection before 2024, in our order: gate, plain."""

_OTHER_NAMES = {
    "mlp.linear1.": "mlp.dense_h_to_4h.",  # since September 2024
    "mlp.linear2.": "mlp.dense_4h_to_h.",
    "mlp.w2.": "mlp.dense_4h_to_h.",  # Llama's before that
    "mlp.fc1_": "mlp.dense_h_to_4h.",  # with Transformer Engine
    "mlp.fc2_": "mlp.dense_4h_to_h.",
    "mlp.layer_norm_": "post_attention_layernorm.",
    "attention.qkv.": "attention.query_key_value.",
    "attention.proj.": "attention.dense.",
}
_NOT_WEIGHTS = re.compile(
    r"(.*\.)?(rotary_emb\..*|inv_freq|attention\.(bias|masked_bias)|alibi_embed\..*|_extra_state)"
)
"""Frequencies, masks and slopes that follow from the configuration."""

_VOCABULARY = ("word_embeddings.weight", "final_linear.weight")
_PROJECTION = ("attention.query_key_value.weight", "attention.query_key_value.bias")
_FIRST = ("mlp.dense_h_to_4h.weight", "mlp.dense_h_to_4h.bias")
_RELATIVE_BIAS = "attention.rpe.weight"
_COLUMNS = ("attention.dense.weight", "mlp.dense_4h_to_h.weight", _RELATIVE_BIAS)
_NORM_OF_HEADS = tuple(f"attention.qk_layernorm.{kind}" for kind in ("weight", "bias", "scale"))
_SUMMED = ("attention.dense.bias", "mlp.dense_4h_to_h.bias")


def our_name(theirs: str, network: ModelShape) -> str:
    """The name inside a layer that this program uses for a tensor of GPT-NeoX."""
    for prefix, ours in _OTHER_NAMES.items():
        if theirs.startswith(prefix):
            theirs = ours + theirs.removeprefix(prefix)
            break
    if theirs in SPLIT_GATE:
        return _FIRST[0]
    if network.norm == "rmsnorm" and theirs.endswith("norm.weight"):
        return f"{theirs.removesuffix('weight')}scale"  # Transformer Engine's name
    return theirs


def is_left_out(theirs: str, network: ModelShape) -> bool:
    """Whether a tensor is no parameter here: it follows from the configuration or has no effect."""
    if _NOT_WEIGHTS.fullmatch(theirs):
        return True
    is_tied = network.gpt_j_residual and network.gpt_j_tied
    return is_tied and theirs.startswith("post_attention_layernorm.")


def full_name(layer: int, name: str, network: ModelShape) -> str:
    """Our name of a parameter of a layer. All blocks of GPT-NeoX have the same relative biases."""
    if name == _RELATIVE_BIAS:
        return f"{SHARED_BIAS}.weight"
    return f"{layer or network.embedding_name}.{name}"


def is_cut(name: str) -> bool:
    """Whether parts of a parameter are pieces after each other, without padding at the end."""
    return name in (*_PROJECTION, *_FIRST, *_COLUMNS, *_NORM_OF_HEADS)


def merge(
    name: str,
    parts: Sequence[Sequence[Tensor]],
    network: ModelShape,
    *,
    num_parts: int,
    kind: str = "fp32",
) -> Tensor:
    """One parameter from its parts, float32, in the logical shape that this program uses.

    Args:
        name: Our name inside the layer.
        parts: Per part the tensor, or of two halves of a gated projection the gate and the plain
            one. May be some of the parts if `is_cut`.
        network: The network that the parameter belongs to.
        num_parts: Number of parts that the whole parameter has.
        kind: ``fp32`` for weights; of moments of the optimizer copies are never summed.

    Raises:
        ValueError: If the parts have another shape than the network's.
    """
    pieces = [tensor.float() for (tensor, *_) in parts]
    if name in _VOCABULARY:
        return torch.cat(pieces)[: network.vocab_size]
    if name in _PROJECTION:
        return torch.cat([_by_group(piece, network, num_parts) for piece in pieces])
    if name in _FIRST and network.is_gated_mlp:
        halves = [_gate_first(part) for part in parts]
        return torch.stack([torch.cat([pair[half] for pair in halves]) for half in (0, 1)])
    if name in _FIRST:
        return torch.cat(pieces)
    if name in _COLUMNS:
        return torch.cat(pieces, dim=1)
    if name in _NORM_OF_HEADS:
        if num_parts > 1 and network.norm == "layernorm":
            raise ValueError(
                f"the layernorm of queries and keys took its mean over the heads of each of "
                f"{num_parts} parts alone, and is over all heads here"
            )
        return torch.cat(pieces)
    if name in _SUMMED and network.gpt_j_residual and kind == "fp32":
        return torch.stack(pieces).sum(0)
    if all(piece.device.type == "meta" or torch.equal(piece, pieces[0]) for piece in pieces):
        return pieces[0]
    return torch.stack(pieces).mean(0)


def _by_group(piece: Tensor, network: ModelShape, num_parts: int) -> Tensor:
    """(queries + keys + values, ...) of a part -> (groups, queries + key + value, ...), flat."""
    heads, groups, size = network.num_attention_heads, network.num_kv_heads, network.head_dim
    if heads % num_parts or groups % num_parts:
        raise ValueError(f"{heads} heads and {groups} key-value heads do not fit {num_parts} parts")
    if piece.shape[0] * num_parts != (heads + 2 * groups) * size:
        raise ValueError(
            f"{piece.shape[0]} rows in {num_parts} parts are not those of {heads} heads and "
            f"{groups} key-value heads of size {size}"
        )
    if heads == groups:
        return piece
    groups, rest = groups // num_parts, piece.shape[1:]
    queries, keys, values = piece.split([heads // num_parts * size, groups * size, groups * size])
    by_group = [tensor.reshape(groups, -1, *rest) for tensor in (queries, keys, values)]
    return torch.cat(by_group, dim=1).reshape(piece.shape)


def _gate_first(part: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Gate and plain half of a part of a gated projection, float32."""
    if len(part) == 2:
        gate, plain = part
    else:
        if part[0].shape[0] % 2:
            raise ValueError(f"{part[0].shape[0]} rows are not a gate and a half of the same size")
        plain, gate = part[0].chunk(2)
    return gate.float(), plain.float()
