"""Llama and the classes built like it: what each can express, and its config.json.

They share the names of their weights: RMSNorm, separate projections to queries, keys and values
with rotated halves, and a gated MLP. They differ in biases, norms and windows of the attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from megatron.sizing.model_shape import ModelShape
from odm.json_data import boolean, fields, integer, list_of, number, optional, text
from tools.hf.conditions import Condition, refusals_of
from tools.hf.rotary import BASE, ROPE_FIELDS, SHARE, read_rope, write_rope
from tools.hf.windows import (
    FULL,
    SLIDING,
    layers_of_windows,
    one_window,
    read_windows,
    window_of,
    write_layer_types,
)

__all__ = ["KINDS", "LlamaLike"]

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
_BIASES: dict[str, tuple[Condition, ...]] = {
    "none": (
        (
            "use_bias_in_attn_linear",
            lambda s: not s.use_bias_in_attn_linear,
            "its attention has no biases",
        ),
        (
            "use_bias_in_attn_output",
            lambda s: not s.use_bias_in_attn_output,
            "its attention has no biases",
        ),
    ),
    "field": (
        (
            "use_bias_in_attn_output",
            lambda s: s.use_bias_in_attn_output == s.use_bias_in_attn_linear,
            "all projections of its attention have a bias or none has",
        ),
    ),
    "inputs": (
        (
            "use_bias_in_attn_linear",
            lambda s: s.use_bias_in_attn_linear,
            "queries, keys and values have a bias",
        ),
        (
            "use_bias_in_attn_output",
            lambda s: not s.use_bias_in_attn_output,
            "the output of its attention has no bias",
        ),
    ),
}
"""What the biases of the attention must be, by `LlamaLike.attention_biases`."""


def _has_plain_heads(shape: ModelShape) -> bool:
    return shape.head_dim * shape.num_attention_heads == shape.hidden_size


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
    "layer_types": optional(list_of(text())),
}


@dataclass(frozen=True)
class LlamaLike:
    """One of the classes."""

    architecture: str
    """Name of the class."""
    attention_biases: Literal["field", "none", "inputs"]
    """Biases of all four projections as the field ``attention_bias`` says, or none, or always those
    of queries, keys and values alone."""
    has_mlp_bias: bool = False
    """Whether the field ``mlp_bias`` gives the MLP biases."""
    has_head_dim: bool = True
    """Whether the field ``head_dim`` may be another than the quotient of width and heads."""
    needs_multiple: bool = False
    """Whether the width must be a multiple of the heads all the same."""
    normalises_heads: bool = False
    """Whether queries and keys are normalised, each head by itself."""
    windows: Literal["none", "all", "some"] = "none"
    """Which layers the field ``sliding_window`` limits: all, or those of ``layer_types``."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Values of transformers for fields that a config.json lacks, if they differ from Llama's."""

    def refusals(self, shape: ModelShape) -> list[str]:
        """What the class cannot express, as ``field: value, reason``; may be empty."""
        return refusals_of(self.architecture, [*_COMMON, *self._conditions()], shape)

    def _conditions(self) -> Iterator[Condition]:
        """What the other classes of this file can express and this one cannot."""
        yield from _BIASES[self.attention_biases]
        if not self.has_mlp_bias:
            yield "use_bias_in_mlp", lambda s: not s.use_bias_in_mlp, "its MLP has no biases"
        if not self.has_head_dim:
            yield (
                "head_dim",
                _has_plain_heads,
                "its heads are hidden_size / num_attention_heads wide",
            )
        if self.needs_multiple:
            reason = "it must be a multiple of num_attention_heads"
            yield "hidden_size", lambda s: s.hidden_size % s.num_attention_heads == 0, reason
        if self.normalises_heads:
            yield (
                "qk_norm",
                lambda s: s.qk_norm == "head",
                "it normalises heads of queries and keys",
            )
        else:
            yield "qk_norm", lambda s: s.qk_norm == "none", "it normalises no queries and keys"
        if self.windows == "none":
            yield "attention_reach", lambda s: not layers_of_windows(s), "its layers see all tokens"
        else:
            yield "attention_reach", self._has_windows_of, "it has other windows"

    def _has_windows_of(self, shape: ModelShape) -> bool:
        allowed = (0, shape.num_layers)
        is_split = layers_of_windows(shape) not in allowed
        return one_window(shape) and not (is_split and self.windows == "all")

    def write_config(self, shape: ModelShape) -> dict[str, Any]:
        """Fields of config.json that describe the network, for transformers 4 and 5.

        Version 4 reads ``rope_theta`` and ``rope_scaling``, version 5 ``rope_parameters``.
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
        if self.windows != "none":
            config["sliding_window"] = window_of(shape)
        if self.windows == "some":
            types = write_layer_types(shape)
            config |= {"use_sliding_window": SLIDING in types, "layer_types": types}
            # early versions of 4 read this number, not layer_types
            config["max_window_layers"] = [*types, SLIDING].index(SLIDING)
        return config

    def read_config(self, config: dict[str, Any]) -> dict[str, Any]:
        """Fields of our YAML files from a config.json that transformers 4 or 5 wrote.

        Raises:
            ValueError: Naming the field that is missing or of the wrong type, or the value that
                this program has no equivalent of.
        """
        fields(_REQUIRED, {**_OPTIONAL, **self._own_fields()})(config, "")
        config = {**self.defaults, **config}
        if self.windows == "some":
            config["layer_types"] = self._layer_types(config)
        activation, is_tanh_gelu = _activation(config.get("hidden_act", "silu"))
        positions = config.get("max_position_embeddings", 2048)
        heads = config["num_attention_heads"]
        return {
            "num_layers": config["num_hidden_layers"],
            "hidden_size": config["hidden_size"],
            "num_attention_heads": heads,
            "num_kv_heads": config.get("num_key_value_heads") or heads,
            **_head_size(config),
            "mlp_inner_size": config["intermediate_size"],
            "seq_length": positions,
            "max_position_embeddings": positions,
            **_whole_heads(
                read_rope(
                    config, base=config.get("rope_theta", 10000), share=1.0, positions=positions
                )
            ),
            **read_windows(config, self._window(config), positions),
            "qk_norm": "head" if self.normalises_heads else "none",
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
        if self.windows != "none":
            found["sliding_window"] = optional(integer(1, 1 << 31))
        if self.windows == "some":
            found["use_sliding_window"] = boolean
            found["max_window_layers"] = integer(0, 1 << 31)
        return found

    def _layer_types(self, config: Mapping[str, Any]) -> list[str]:
        """What transformers computes where the file lacks it."""
        if config.get("layer_types"):
            return config["layer_types"]
        first = config["max_window_layers"] if self._window(config) is not None else None
        return [
            FULL if first is None or layer < first else SLIDING
            for layer in range(config["num_hidden_layers"])
        ]

    def _window(self, config: Mapping[str, Any]) -> int | None:
        """The window; None if no layer has one."""
        is_off = self.windows == "some" and not config.get("use_sliding_window", False)
        return None if self.windows == "none" or is_off else config.get("sliding_window")

    def _biases(self, config: Mapping[str, Any]) -> dict[str, Any]:
        in_all = self.attention_biases == "field" and config.get("attention_bias", False)
        return {
            "use_bias_in_attn_linear": in_all or self.attention_biases == "inputs",
            "use_bias_in_attn_output": in_all,
            "use_bias_in_mlp": self.has_mlp_bias and config.get("mlp_bias", False),
        }


def _head_size(config: Mapping[str, Any]) -> dict[str, Any]:
    """Nothing if the heads divide the width among them."""
    size = config.get("head_dim")
    if size is None or size * config["num_attention_heads"] == config["hidden_size"]:
        return {}
    return {"head_dim": size}


def _whole_heads(rope: dict[str, Any]) -> dict[str, Any]:
    if rope["rotary_pct"] != 1:
        share = rope["rotary_pct"]
        raise ValueError(f"rope_parameters: partial_rotary_factor must be 1, got {share!r}")
    return rope


def _activation(hidden_act: str) -> tuple[str, bool]:
    if hidden_act not in _FROM_HIDDEN_ACT:
        known = ", ".join(_FROM_HIDDEN_ACT)
        raise ValueError(f"hidden_act: {hidden_act!r} is not supported; known are {known}")
    return _FROM_HIDDEN_ACT[hidden_act]


_QWEN = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
KINDS = {
    "llama": LlamaLike("LlamaForCausalLM", "field", has_mlp_bias=True, needs_multiple=True),
    "mistral": LlamaLike(
        "MistralForCausalLM",
        "none",
        windows="all",
        defaults={
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
        },
    ),
    "qwen2": LlamaLike(
        "Qwen2ForCausalLM", "inputs", has_head_dim=False, windows="some", defaults=_QWEN
    ),
    "qwen3": LlamaLike(
        "Qwen3ForCausalLM",
        "field",
        normalises_heads=True,
        windows="some",
        defaults={**_QWEN, "head_dim": 128},
    ),
}
"""By the value of `model_type` in config.json."""
