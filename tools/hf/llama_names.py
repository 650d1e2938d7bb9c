"""Names of the weights of Llama and of the classes built like it."""

from __future__ import annotations

from tools.hf.weights import Names

__all__ = ["IGNORED", "NAMES"]

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
        *((f"attention.{norm}_norm.scale", f"self_attn.{norm}_norm.weight") for norm in "qk"),
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
