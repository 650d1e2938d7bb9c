"""A small network for the tests of the model."""

from __future__ import annotations

from typing import Any

from megatron.sizing.model_shape import ModelShape


def small_model(**changes: Any) -> ModelShape:
    """Two layers of width 32 with four heads; ``changes`` win."""
    settings: dict[str, Any] = {
        "num_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_kv_heads": 4,
        "head_dim": 8,
        "mlp_inner_size": 128,
        "is_gated_mlp": False,
        "max_position_embeddings": 24,
        "vocab_size": 61,
        "padded_vocab_size": 64,
        "qk_norm": "none",
        "pos_emb": "rotary",
        "rotary_dim": 4,
        "norm_epsilon": 1e-5,
        "checkpoint_num_layers": 0,
        "no_weight_tying": True,
    }
    settings.update(changes)
    settings.setdefault("use_bias_in_attn_output", settings.get("use_bias_in_attn_linear", True))
    return ModelShape(**settings)
