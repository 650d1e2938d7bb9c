"""Whether a checkpoint's weights were trained in the network that a run is about to put them in.

Names and shapes alone do not tell: with another number of heads, or without the parallel residual,
the same parameters compute something else. Where they do, a key tells the user more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from megatron.checkpoint.format import read_resolved_config
from megatron.model.config import ModelConfig
from megatron.neox_arguments.rules.model import NORM_EPSILONS

__all__ = ["first_difference", "network_problem"]

_FREE = {
    "make_vocab_size_divisible_by",
    "vocab_size",  # of the tokenizer; a shape
    "padded_vocab_size",  # of the layout
    "bias_gelu_fusion",  # a choice of speed in GPT-NeoX; moves an activation by 1e-3 at most
    "hidden_dropout",
    "attention_dropout",
    "init_method",
    "output_layer_init_method",
    "init_method_std",
    "checkpoint_num_layers",
    "z_loss",
}
"""Fields of `ModelConfig` that may change between runs; a new one is compared."""

_ONLY_WITH = {
    "max_position_embeddings": ("pos_emb", "learned"),  # else how far to read
    "rotary_dim": ("pos_emb", "rotary"),
    "rotary_emb_base": ("pos_emb", "rotary"),
    "gpt_j_tied": ("gpt_j_residual", True),
    "use_bias_in_norms": ("norm", "layernorm"),
}
"""{field: (another, its value)}: where the other has another value, the field has no effect."""

_LABELS = {
    "rotary_dim": "rotary_dim (from rotary_pct)",
    "mlp_inner_size": "mlp_inner_size (from intermediate_size)",
}
"""What follows from a key of another name."""


def network_problem(network: ModelConfig, folder: Path) -> str | None:
    """A line if a checkpoint's weights were trained in another network, else None.

    A checkpoint that does not say its network is accepted, and so is a field that is missing there,
    as where an older version wrote it.

    Args:
        network: What is about to be filled.
        folder: The checkpoint.

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
    network: ModelConfig, sections: Mapping[str, Any]
) -> tuple[str, object, object] | None:
    """The first field that changes what the weights compute: (its key, theirs, the network's).

    Args:
        network: What is about to be filled.
        sections: Contents of ``resolved.json`` in today's form.
    """
    known = sections.get("model", {})
    for name in (field.name for field in fields(network) if field.name not in _FREE):
        other, value = _ONLY_WITH.get(name, (name, getattr(network, name)))
        if getattr(network, other) != value or known.get(name) is None:
            continue
        if known[name] != getattr(network, name):
            key = NORM_EPSILONS[network.norm] if name == "norm_epsilon" else name
            return _LABELS.get(key, key), known[name], getattr(network, name)
    return None
