"""GPTNeoXForCausalLM: what it can express, and its config.json in both directions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from megatron.sizing.model_shape import ModelShape
from odm.json_data import boolean, fields, integer, number, optional, shown, text

__all__ = ["IGNORED", "OTHER_NAMES", "WEIGHTS", "read_config", "refusals", "write_config"]

BLOCK_WEIGHTS = tuple(
    f"{module}.{kind}"
    for module in (
        "input_layernorm",
        "attention.query_key_value",
        "attention.dense",
        "post_attention_layernorm",
        "mlp.dense_h_to_4h",
        "mlp.dense_4h_to_h",
    )
    for kind in ("weight", "bias")
)

WEIGHTS = (
    ("{embedding}.word_embeddings.weight", "gpt_neox.embed_in.weight"),
    *(("{block}." + name, "gpt_neox.layers.{layer}." + name) for name in BLOCK_WEIGHTS),
    ("{norm}.norm.weight", "gpt_neox.final_layer_norm.weight"),
    ("{norm}.norm.bias", "gpt_neox.final_layer_norm.bias"),
    ("{output}.final_linear.weight", "embed_out.weight"),
)
"""Rows of the fused projection are [head, query key value, dimension] on both sides."""

OTHER_NAMES = {"embed_out.weight": "lm_head.weight"}
"""transformers 5 has lm_head in memory and embed_out in its files; some programs write lm_head."""

IGNORED = r".*\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)"
"""Masks and frequencies that old versions stored beside the weights."""

_TO_HIDDEN_ACT = {
    ("gelu", False): "gelu",
    ("gelu", True): "gelu_pytorch_tanh",
    ("relu", False): "relu",
    ("silu", False): "silu",
    ("swish", False): "silu",
    ("mish", False): "mish",
}
_TANH_GELU = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_accurate")
_FROM_HIDDEN_ACT = {
    "gelu": ("gelu", False),
    "gelu_python": ("gelu", False),
    **dict.fromkeys(_TANH_GELU, ("gelu", True)),
    "relu": ("relu", False),
    "silu": ("silu", False),
    "swish": ("silu", False),
    "mish": ("mish", False),
}


def _hidden_act(shape: ModelShape) -> str | None:
    """None if the class has no such activation."""
    is_tanh = shape.activation == "gelu" and shape.bias_gelu_fusion
    return _TO_HIDDEN_ACT.get((shape.activation, is_tanh))


_CONDITIONS: tuple[tuple[str, Callable[[ModelShape], bool], str], ...] = (
    ("norm", lambda s: s.norm == "layernorm", "it has layernorm"),
    ("pos_emb", lambda s: s.pos_emb == "rotary", "it has rotary positions"),
    (
        "activation",
        lambda s: not s.is_gated_mlp and _hidden_act(s) is not None,
        "it has gelu, relu, silu and mish, none of them gated",
    ),
    (
        "num_kv_heads",
        lambda s: s.num_kv_heads == s.num_attention_heads,
        "it has a key and a value for every query head",
    ),
    (
        "gpt_j_tied",
        lambda s: not (s.gpt_j_residual and s.gpt_j_tied),
        "it has two norms per block",
    ),
    ("attention_reach", lambda s: not s.attention_reach, "its layers see all earlier tokens"),
    ("use_bias_in_norms", lambda s: s.use_bias_in_norms, "its norms have a bias"),
    ("use_bias_in_mlp", lambda s: s.use_bias_in_mlp, "its MLP has biases"),
)

_KEYS = {"attention_reach": "sliding_window_width and 'local' in attention_config"}
"""Field -> the keys that decide it, if they have other names."""


def refusals(shape: ModelShape) -> list[str]:
    """What the class cannot express, as ``field: value, reason``; may be empty."""
    return [
        f"{_KEYS.get(field, field)}: GPTNeoXForCausalLM cannot express {_value(shape, field)}; "
        f"{reason}"
        for field, can_express, reason in _CONDITIONS
        if not can_express(shape)
    ]


def _value(shape: ModelShape, field: str) -> str:
    if field != "attention_reach":
        return repr(getattr(shape, field))
    kinds = sorted({tuple(reach) for reach in shape.attention_reach if reach is not None})
    return " and ".join(
        f"a window of {blocks} tokens" if size == 1 else f"{blocks} blocks of {size} tokens"
        for blocks, size in kinds
    )


def write_config(shape: ModelShape) -> dict[str, Any]:
    """Fields of config.json that describe the network, for transformers 4 and 5.

    Version 4 reads ``rotary_pct`` and ``rotary_emb_base``, version 5 ``rope_parameters``.
    """
    share = _rotary_share(shape.rotary_dim, shape.head_dim)
    base = shape.rotary_emb_base
    return {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_attention_heads,
        "intermediate_size": shape.mlp_inner_size,
        "hidden_act": _hidden_act(shape),
        "max_position_embeddings": shape.max_position_embeddings,
        "layer_norm_eps": shape.norm_epsilon,
        "initializer_range": shape.init_method_std,
        "use_parallel_residual": shape.gpt_j_residual,
        "attention_bias": shape.use_bias_in_attn_linear,
        "attention_dropout": shape.attention_dropout,
        "hidden_dropout": shape.hidden_dropout,
        "tie_word_embeddings": not shape.no_weight_tying,
        "use_cache": True,
        "rotary_pct": share,
        "rotary_emb_base": base,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": float(base),
            "partial_rotary_factor": share,
        },
    }


def _rotary_share(rotary_dim: int, head_dim: int) -> float:
    """The share whose product with the head size, rounded down, is ``rotary_dim``."""
    share = rotary_dim / head_dim
    return share if int(head_dim * share) == rotary_dim else math.nextafter(share, 1.0)


_SIZE = integer(1, 1 << 19)
_SHARE = number(0, 1)
_ROPE = {
    "rope_theta": number(1, 2**53),
    "partial_rotary_factor": _SHARE,
    "rope_type": text(),
    "type": text(),
}
_CONFIG = fields(
    {
        "vocab_size": integer(1, 1 << 31),
        "num_hidden_layers": integer(1, 10_000),
        "hidden_size": _SIZE,
        "num_attention_heads": _SIZE,
        "intermediate_size": _SIZE,
    },
    {
        "rotary_emb_base": number(1, 2**53),
        "rotary_pct": _SHARE,
        "rope_scaling": optional(fields({}, _ROPE)),
        "rope_parameters": optional(fields({}, _ROPE)),
        "hidden_act": text(),
        "max_position_embeddings": integer(1, 1 << 31),
        "layer_norm_eps": number(0, 1),
        "use_parallel_residual": boolean,
        "tie_word_embeddings": boolean,
        "attention_bias": boolean,
        "hidden_dropout": _SHARE,
        "attention_dropout": _SHARE,
        "initializer_range": number(0, 1e6),
    },
)


def read_config(config: dict[str, Any]) -> dict[str, Any]:
    """Fields of our YAML files from a config.json that transformers 4 or 5 wrote.

    Raises:
        ValueError: Naming the field that is missing or of the wrong type, or the value that this
            program has no equivalent of.
    """
    _CONFIG(config, "")
    rope = {
        "rope_theta": config.get("rotary_emb_base", 10000),
        "partial_rotary_factor": config.get("rotary_pct", 0.25),
        **(config.get("rope_scaling") or {}),
        **(config.get("rope_parameters") or {}),
    }
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(
            f"rope_parameters: rope_type {shown(kind)} is not supported; only 'default' is"
        )
    base = rope["rope_theta"]
    if not float(base).is_integer():
        raise ValueError(f"rope_parameters: rope_theta must be a whole number, got {base!r}")
    hidden_act = config.get("hidden_act", "gelu")
    if hidden_act not in _FROM_HIDDEN_ACT:
        known = ", ".join(_FROM_HIDDEN_ACT)
        raise ValueError(f"hidden_act: {hidden_act!r} is not supported; known are {known}")
    activation, is_tanh_gelu = _FROM_HIDDEN_ACT[hidden_act]
    positions = config.get("max_position_embeddings", 2048)
    return {
        "num_layers": config["num_hidden_layers"],
        "hidden_size": config["hidden_size"],
        "num_attention_heads": config["num_attention_heads"],
        "mlp_inner_size": config["intermediate_size"],
        "seq_length": positions,
        "max_position_embeddings": positions,
        "pos_emb": "rotary",
        "rotary_pct": rope["partial_rotary_factor"],
        "rotary_emb_base": int(base),
        "norm": "layernorm",
        "layernorm_epsilon": config.get("layer_norm_eps", 1e-5),
        "activation": activation,
        "bias_gelu_fusion": is_tanh_gelu,
        "gpt_j_residual": config.get("use_parallel_residual", True),
        "no_weight_tying": not config.get("tie_word_embeddings", False),
        "use_bias_in_attn_linear": config.get("attention_bias", True),
        "hidden_dropout": float(config.get("hidden_dropout", 0.0)),
        "attention_dropout": float(config.get("attention_dropout", 0.0)),
        "init_method_std": config.get("initializer_range", 0.02),
    }
