"""The logits of Llama, Mistral, Qwen2 and Qwen3 networks of transformers, from the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from megatron.model.gpt2_model import GPT2Model
from megatron.neox_arguments.sections.model import RopeScaling
from tests.unit.model.shapes import small_model

transformers = pytest.importorskip("transformers")

LLAMA_3 = {
    **{"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 16},
    **{"low_freq_factor": 1.0, "high_freq_factor": 4.0},
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
WIDE = {"head_dim": 12}
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "llama 2": ("Llama", {}, {"use_bias_in_attn_linear": False}, {}),
    "llama 3.1": ("Llama", {}, {"use_bias_in_attn_linear": False}, LLAMA_3),
    "mistral": (
        *("Mistral", {**WIDE, "sliding_window": None}),
        *({**WIDE, "use_bias_in_attn_linear": False}, {}),
    ),
    "qwen 2": ("Qwen2", {}, {"use_bias_in_attn_output": False}, YARN),
    "qwen 3": ("Qwen3", WIDE, {**WIDE, "use_bias_in_attn_linear": False, "qk_norm": "head"}, YARN),
}
"""Class, its own settings, ours, and the scaling of positions that both have."""


def their_network(kind: str, settings: dict[str, Any], scaling: dict[str, Any]) -> Any:
    """Two layers of width 32 with four heads on two keys, far from their first values."""
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=61,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=88,
        max_position_embeddings=64,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", **scaling, "rope_theta": 1000.0},
        **settings,
    )
    network = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0.2 if parameter.dim() == 1 else 0.0, 0.3, generator=generator)
    return network


def our_network(settings: dict[str, Any], scaling: dict[str, Any]) -> GPT2Model:
    shape = {
        **{"num_kv_heads": 2, "rotary_dim": settings.get("head_dim", 8), "rotary_emb_base": 1000},
        **{"mlp_inner_size": 88, "is_gated_mlp": True, "activation": "swiglu"},
        **{"use_bias_in_mlp": False, "norm": "rmsnorm", "norm_epsilon": 1e-6},
        **{"max_position_embeddings": 64, "vocab_size": 61, "padded_vocab_size": 61},
        "rope_scaling": RopeScaling(**scaling) if scaling else None,
    }
    return GPT2Model(small_model(**shape, **settings), seed=1).eval()


def weights_of(theirs: dict[str, Tensor], head_dim: int) -> dict[str, Tensor]:
    """Their weights under our names."""
    ours = {
        "0.word_embeddings.weight": theirs["model.embed_tokens.weight"],
        "5.norm.scale": theirs["model.norm.weight"],
        "6.final_linear.weight": theirs["lm_head.weight"],
    }
    same = {
        "input_layernorm.scale": "input_layernorm.weight",
        "post_attention_layernorm.scale": "post_attention_layernorm.weight",
        "attention.dense.weight": "self_attn.o_proj.weight",
        "attention.q_norm.scale": "self_attn.q_norm.weight",
        "attention.k_norm.scale": "self_attn.k_norm.weight",
        "mlp.dense_4h_to_h.weight": "mlp.down_proj.weight",
    }
    for layer in range(2):
        source, target = f"model.layers.{layer}.", f"{layer + 2}."
        ours |= {target + k: theirs[source + v] for k, v in same.items() if source + v in theirs}
        mlp = [theirs[f"{source}mlp.{name}_proj.weight"] for name in ("gate", "up")]
        ours[f"{target}mlp.dense_h_to_4h.weight"] = torch.stack(mlp)
        for kind in ("weight", "bias"):
            names = [f"{source}self_attn.{name}_proj.{kind}" for name in "qkv"]
            if names[0] in theirs:  # two groups of two queries, a key and a value
                parts = [theirs[name].unflatten(0, (2, -1, head_dim)) for name in names]
                fused = torch.cat(parts, dim=1).flatten(0, 2)
                ours[f"{target}attention.query_key_value.{kind}"] = fused
    return ours


@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_computes_the_logits_of_its_family(family):
    kind, their_settings, settings, scaling = FAMILIES[family]
    theirs, ours = their_network(kind, their_settings, scaling), our_network(settings, scaling)
    ours.load_state_dict(weights_of(theirs.state_dict(), ours.config.head_dim))
    tokens = torch.randint(0, 61, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        got, want = ours(tokens), theirs(tokens).logits
    assert want.std() > 0.3
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
