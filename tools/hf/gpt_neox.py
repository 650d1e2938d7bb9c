"""GPTNeoXForCausalLM: what it can express, and its config.json in both directions."""

from __future__ import annotations

from typing import Any

from megatron.sizing.model_shape import ModelShape
from odm.json_data import boolean, fields, integer, number, text
from tools.hf.conditions import Condition, refusals_of
from tools.hf.rotary import BASE, ROPE_FIELDS, SHARE, read_rope, rotary_share, write_rope
from tools.hf.weights import Names
from tools.hf.windows import layers_of_windows

__all__ = ["IGNORED", "NAMES", "OTHER_NAMES", "read_config", "refusals", "write_config"]

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

NAMES: Names = (
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


_CONDITIONS: tuple[Condition, ...] = (
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
    (
        "head_dim",
        lambda s: s.head_dim * s.num_attention_heads == s.hidden_size,
        "its heads are hidden_size / num_attention_heads wide",
    ),
    ("qk_norm", lambda s: s.qk_norm == "none", "it does not normalise queries and keys"),
    (
        "use_bias_in_attn_output",
        lambda s: s.use_bias_in_attn_output == s.use_bias_in_attn_linear,
        "both attention projections have a bias or none has",
    ),
    ("attention_reach", lambda s: not layers_of_windows(s), "its layers see all earlier tokens"),
    ("use_bias_in_norms", lambda s: s.use_bias_in_norms, "its norms have a bias"),
    ("use_bias_in_mlp", lambda s: s.use_bias_in_mlp, "its MLP has biases"),
)


def refusals(shape: ModelShape) -> list[str]:
    """What the class cannot express, as ``field: value, reason``; may be empty."""
    return refusals_of("GPTNeoXForCausalLM", _CONDITIONS, shape)


def write_config(shape: ModelShape) -> dict[str, Any]:
    """Fields of config.json that describe the network, for transformers 4 and 5.

    Version 4 reads ``rotary_pct`` and ``rotary_emb_base``, version 5 ``rope_parameters``.
    """
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
        "rotary_pct": rotary_share(shape),
        "rotary_emb_base": shape.rotary_emb_base,
        **write_rope(shape),
    }


_SIZE = integer(1, 1 << 19)
_CONFIG = fields(
    {
        "vocab_size": integer(1, 1 << 31),
        "num_hidden_layers": integer(1, 10_000),
        "hidden_size": _SIZE,
        "num_attention_heads": _SIZE,
        "intermediate_size": _SIZE,
    },
    {
        **ROPE_FIELDS,
        "rotary_emb_base": BASE,
        "rotary_pct": SHARE,
        "hidden_act": text(),
        "max_position_embeddings": integer(1, 1 << 31),
        "layer_norm_eps": number(0, 1),
        "use_parallel_residual": boolean,
        "tie_word_embeddings": boolean,
        "attention_bias": boolean,
        "hidden_dropout": SHARE,
        "attention_dropout": SHARE,
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
        **read_rope(
            config,
            base=config.get("rotary_emb_base", 10000),
            share=config.get("rotary_pct", 0.25),
            positions=positions,
        ),
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
