"""Llama and the classes built like it: what each can express, and its config.json.

They share the names of their weights: RMSNorm, separate projections to queries, keys and values
with rotated halves, and a gated MLP. They differ in biases, norms and windows of the attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from megatron.sizing.model_shape import ModelShape
from odm.json_data import boolean, fields, integer, number, optional, text
from tools.hf.conditions import Condition, refusals_of
from tools.hf.rotary import BASE, ROPE_FIELDS, SHARE, read_rope, write_rope
from tools.hf.weights import Names

__all__ = ["IGNORED", "KINDS", "NAMES", "LlamaLike"]

_PROJECTIONS = tuple(f"self_attn.{name}_proj" for name in "qkv")
_GATED = ("mlp.gate_proj", "mlp.up_proj")


def _block_names() -> Names:
    kinds = ("weight", "bias")
    attention = tuple(
        (f"attention.query_key_value.{kind}", tuple(f"{name}.{kind}" for name in _PROJECTIONS))
        for kind in kinds
    )
    mlp = tuple(
        (f"mlp.dense_h_to_4h.{kind}", tuple(f"{name}.{kind}" for name in _GATED)) for kind in kinds
    )
    return (
        ("input_layernorm.scale", "input_layernorm.weight"),
        *attention,
        *((f"attention.dense.{kind}", f"self_attn.o_proj.{kind}") for kind in kinds),
        ("post_attention_layernorm.scale", "post_attention_layernorm.weight"),
        *mlp,
        *((f"mlp.dense_4h_to_h.{kind}", f"mlp.down_proj.{kind}") for kind in kinds),
    )


def _in_layer(theirs: str | tuple[str, ...]) -> str | tuple[str, ...]:
    layer = "model.layers.{layer}."
    return layer + theirs if isinstance(theirs, str) else tuple(layer + name for name in theirs)


NAMES: Names = (
    ("{embedding}.word_embeddings.weight", "model.embed_tokens.weight"),
    *(("{block}." + ours, _in_layer(theirs)) for ours, theirs in _block_names()),
    ("{norm}.norm.scale", "model.norm.weight"),
    ("{output}.final_linear.weight", "lm_head.weight"),
)
"""Rows of our fused projection are [group, queries key value, dimension]; theirs are separate."""

IGNORED = r"(.*\.)?rotary_emb\.inv_freq|lm_head\.weight"
"""Frequencies that old versions stored, and the output matrix of tied embeddings."""

_TO_HIDDEN_ACT = {
    ("swiglu", False): "silu",
    ("geglu", False): "gelu",
    ("geglu", True): "gelu_pytorch_tanh",
    ("reglu", False): "relu",
    ("glu", False): "sigmoid",
    ("bilinear", False): "linear",
}
_TANH_GELU = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_accurate")
_FROM_HIDDEN_ACT = {
    **{theirs: ours for ours, theirs in _TO_HIDDEN_ACT.items()},
    **dict.fromkeys(_TANH_GELU, ("geglu", True)),
    "swish": ("swiglu", False),
    "gelu_python": ("geglu", False),
}


def _hidden_act(shape: ModelShape) -> str | None:
    """None if the classes have no such activation."""
    is_tanh = shape.activation == "geglu" and shape.bias_gelu_fusion
    return _TO_HIDDEN_ACT.get((shape.activation, is_tanh))


_COMMON: tuple[Condition, ...] = (
    ("norm", lambda s: s.norm == "rmsnorm", "it has rmsnorm"),
    ("pos_emb", lambda s: s.pos_emb == "rotary", "it has rotary positions"),
    (
        "rotary_dim",
        lambda s: s.pos_emb != "rotary" or s.rotary_dim == s.head_dim,
        "it rotates whole heads; rotary_pct must be 1",
    ),
    (
        "activation",
        lambda s: _hidden_act(s) is not None,
        "it has a gated MLP: swiglu, geglu, reglu, glu and bilinear",
    ),
    ("gpt_j_residual", lambda s: not s.gpt_j_residual, "its residual is sequential"),
)

_SIZE = integer(1, 1 << 19)
_REQUIRED = {
    "vocab_size": integer(1, 1 << 31),
    "num_hidden_layers": integer(1, 10_000),
    "hidden_size": _SIZE,
    "num_attention_heads": _SIZE,
    "intermediate_size": integer(1, 1 << 24),
}
_OPTIONAL = {
    **ROPE_FIELDS,
    "rope_theta": BASE,
    "num_key_value_heads": optional(_SIZE),
    "head_dim": optional(_SIZE),
    "hidden_act": text(),
    "max_position_embeddings": integer(1, 1 << 31),
    "rms_norm_eps": number(0, 1),
    "initializer_range": number(0, 1e6),
    "tie_word_embeddings": boolean,
    "attention_dropout": SHARE,
}


@dataclass(frozen=True)
class LlamaLike:
    """One of the classes."""

    architecture: str
    """Name of the class."""
    attention_biases: Literal["field", "none"]
    """Biases of all four projections as the field ``attention_bias`` says, or none."""
    has_mlp_bias: bool = False
    """Whether the field ``mlp_bias`` gives the MLP biases."""
    has_window: bool = False
    """Whether the field ``sliding_window`` limits how far a position sees."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Values of transformers for fields that a config.json lacks, if they differ from Llama's."""

    def refusals(self, shape: ModelShape) -> list[str]:
        """What the class cannot express, as ``field: value, reason``; may be empty."""
        conditions = list(_COMMON)
        if self.attention_biases == "none":
            reason = "its attention has no biases"
            conditions.append(
                ("use_bias_in_attn_linear", lambda s: not s.use_bias_in_attn_linear, reason)
            )
        if not self.has_mlp_bias:
            reason = "its MLP has no biases"
            conditions.append(("use_bias_in_mlp", lambda s: not s.use_bias_in_mlp, reason))
        return refusals_of(self.architecture, conditions, shape)

    def write_config(self, shape: ModelShape) -> dict[str, Any]:
        """Fields of config.json that describe the network, for transformers 4 and 5.

        Version 4 reads ``rope_theta``, version 5 ``rope_parameters``.
        """
        config = {
            "vocab_size": shape.vocab_size,
            "hidden_size": shape.hidden_size,
            "num_hidden_layers": shape.num_layers,
            "num_attention_heads": shape.num_attention_heads,
            "num_key_value_heads": shape.num_kv_heads,
            "head_dim": shape.head_dim,
            "intermediate_size": shape.mlp_inner_size,
            "hidden_act": _hidden_act(shape),
            "max_position_embeddings": shape.max_position_embeddings,
            "rms_norm_eps": shape.norm_epsilon,
            "initializer_range": shape.init_method_std,
            "attention_dropout": shape.attention_dropout,
            "tie_word_embeddings": not shape.no_weight_tying,
            "use_cache": True,
            "rope_theta": float(shape.rotary_emb_base),
            **write_rope(shape),
        }
        if self.attention_biases == "field":
            config["attention_bias"] = shape.use_bias_in_attn_linear
        if self.has_mlp_bias:
            config["mlp_bias"] = shape.use_bias_in_mlp
        if self.has_window:
            config["sliding_window"] = None
        return config

    def read_config(self, config: dict[str, Any]) -> dict[str, Any]:
        """Fields of our YAML files from a config.json that transformers 4 or 5 wrote.

        Raises:
            ValueError: Naming the field that is missing or of the wrong type, or the value that
                this program has no equivalent of.
        """
        fields(_REQUIRED, {**_OPTIONAL, **self._own_fields()})(config, "")
        config = {**self.defaults, **config}
        activation, is_tanh_gelu = _activation(config.get("hidden_act", "silu"))
        positions = config.get("max_position_embeddings", 2048)
        heads = config["num_attention_heads"]
        return {
            "num_layers": config["num_hidden_layers"],
            "hidden_size": config["hidden_size"],
            "num_attention_heads": heads,
            "num_kv_heads": config.get("num_key_value_heads") or heads,
            **self._head_size(config),
            "mlp_inner_size": config["intermediate_size"],
            "seq_length": positions,
            "max_position_embeddings": positions,
            **read_rope(config, base=config.get("rope_theta", 10000), share=1.0),
            **self._window(config, positions),
            "norm": "rmsnorm",
            "rms_norm_epsilon": config.get("rms_norm_eps", 1e-6),
            "activation": activation,
            "bias_gelu_fusion": is_tanh_gelu,
            "gpt_j_residual": False,
            "no_weight_tying": not config.get("tie_word_embeddings", False),
            **self._biases(config),
            "hidden_dropout": 0.0,
            "attention_dropout": float(config.get("attention_dropout", 0.0)),
            "init_method_std": config.get("initializer_range", 0.02),
        }

    def _own_fields(self) -> dict[str, Any]:
        """Checks of the fields that other classes of this file lack."""
        found: dict[str, Any] = {}
        if self.attention_biases == "field":
            found["attention_bias"] = boolean
        if self.has_mlp_bias:
            found["mlp_bias"] = boolean
        if self.has_window:
            found["sliding_window"] = optional(integer(1, 1 << 31))
        return found

    def _head_size(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Nothing if the heads divide the width among them."""
        hidden, heads, size = (
            config.get(key) for key in ("hidden_size", "num_attention_heads", "head_dim")
        )
        if size is None or size * heads == hidden:
            return {}
        raise ValueError(
            f"head_dim: {size} times num_attention_heads {heads} must be hidden_size {hidden}"
        )

    def _window(self, config: Mapping[str, Any], positions: int) -> dict[str, Any]:
        """Nothing if the window hides nothing."""
        width = config.get("sliding_window") if self.has_window else None
        return {} if width is None or width >= positions else {"sliding_window_width": width}

    def _biases(self, config: Mapping[str, Any]) -> dict[str, Any]:
        in_attention = self.attention_biases == "field" and config.get("attention_bias", False)
        return {
            "use_bias_in_attn_linear": in_attention,
            "use_bias_in_mlp": self.has_mlp_bias and config.get("mlp_bias", False),
        }


def _activation(hidden_act: str) -> tuple[str, bool]:
    if hidden_act not in _FROM_HIDDEN_ACT:
        known = ", ".join(_FROM_HIDDEN_ACT)
        raise ValueError(f"hidden_act: {hidden_act!r} is not supported; known are {known}")
    return _FROM_HIDDEN_ACT[hidden_act]


KINDS = {
    "llama": LlamaLike("LlamaForCausalLM", "field", has_mlp_bias=True),
    "mistral": LlamaLike(
        "MistralForCausalLM",
        "none",
        has_window=True,
        defaults={
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
        },
    ),
}
"""By the value of `model_type` in config.json."""
