"""Checks that a checkpoint's weights were trained in the network into which a run loads them.

Names and shapes are not enough: with another number of heads, or without the parallel residual, the
same parameters compute something else. Even where shapes differ too, the name of a key tells the
user more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from megatron.checkpoint.format import read_resolved_config
from megatron.neox_arguments.rules.model import NORM_EPSILONS
from megatron.sizing.model_shape import ModelShape

__all__ = ["first_difference", "network_problem"]

_FREE = {
    "make_vocab_size_divisible_by",
    "vocab_size",  # follows from the tokenizer; compared as a shape
    "padded_vocab_size",  # follows from the layout
    "bias_gelu_fusion",  # for speed in GPT-NeoX; changes an activation by 1e-3 at most
    "hidden_dropout",
    "attention_dropout",
    "init_method",
    "output_layer_init_method",
    "init_method_std",
    "checkpoint_num_layers",
    "z_loss",
    "soft_prompt",  # compared as a shape
    "reset_attention_mask",  # how samples are read, as seq_length
    "reset_position_ids",
}
"""Fields of `ModelShape` that may change between runs; a new one is compared."""

_ONLY_WITH = {
    "max_position_embeddings": ("pos_emb", "learned"),  # otherwise only a limit on the context
    "rotary_dim": ("pos_emb", "rotary"),
    "rotary_emb_base": ("pos_emb", "rotary"),
    "rope_scaling": ("pos_emb", "rotary"),
    "gpt_j_tied": ("gpt_j_residual", True),
    "use_bias_in_norms": ("norm", "layernorm"),
    "rpe_num_buckets": ("pos_emb", "rpe"),
    "rpe_max_distance": ("pos_emb", "rpe"),
}
"""{field: (other field, value)}: the field has an effect only if the other one has this value."""

_MAY_BE_NULL = {"rope_scaling"}
"""Fields whose null is a value."""

_LABELS = {
    "rotary_dim": "rotary_dim (from rotary_pct)",
    "mlp_inner_size": "mlp_inner_size (from intermediate_size)",
    "attention_reach": "attention_reach (from sliding_window_width and attention_config)",
}
"""Field -> its label in messages, if the user sets it by a key of another name."""


def network_problem(network: ModelShape, folder: Path) -> str | None:
    """A message if a checkpoint's weights were trained in another network, otherwise None.

    A checkpoint without a description of its network is accepted. So is a missing field, since an
    older version may have written the checkpoint.

    Args:
        network: The network that is to be filled with the weights.
        folder: A ``global_step<N>`` folder.

    Raises:
        CheckpointError: If its configuration cannot be read.
    """
    found = first_difference(network, read_resolved_config(folder) or {})
    if found is None:
        return None
    key, trained, wanted = found
    return (
        f"{folder}/configs/resolved.json: {key} is {json.dumps(trained)}, this run has "
        f"{json.dumps(wanted)}, which is another network; use the model's own configuration"
    )


def first_difference(
    network: ModelShape, sections: Mapping[str, Any]
) -> tuple[str, object, object] | None:
    """The first difference that changes the result: (key, checkpoint's value, network's value).

    Args:
        network: The network that is to be filled with the weights.
        sections: Contents of ``resolved.json`` in today's form.
    """
    known = sections.get("model", {})
    wanted = json.loads(json.dumps(asdict(network)))  # lists in place of tuples
    for name in (field.name for field in fields(network) if field.name not in _FREE):
        other, value = _ONLY_WITH.get(name, (name, wanted[name]))
        is_told = known.get(name) is not None or (name in _MAY_BE_NULL and name in known)
        if wanted[other] != value or not is_told:
            continue
        if known.get(name) != wanted[name]:
            key = NORM_EPSILONS[network.norm] if name == "norm_epsilon" else name
            return _LABELS.get(key, key), known.get(name), wanted[name]
    return None
