"""FLOPs against hand counts and a published figure."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron.neox_arguments import NeoXArgs, resolve
from megatron.sizing.flops import flops_per_token, forward_flops_per_token, model_flops_per_token
from megatron.sizing.model_shape import ModelShape

REST = {
    **{"pos_emb": "rotary", "rotary_dim": 0, "norm_epsilon": 1e-5, "checkpoint_num_layers": 0},
    **{"qk_norm": "none", "use_bias_in_attn_output": True},
}
TINY = ModelShape(
    num_layers=2,
    hidden_size=4,
    num_attention_heads=2,
    num_kv_heads=2,
    head_dim=2,
    mlp_inner_size=16,
    is_gated_mlp=False,
    max_position_embeddings=6,
    vocab_size=10,
    padded_vocab_size=12,
    **REST,
)
LLAMA_3_8B = ModelShape(
    num_layers=32,
    hidden_size=4096,
    num_attention_heads=32,
    num_kv_heads=8,
    head_dim=128,
    mlp_inner_size=14336,
    is_gated_mlp=True,
    max_position_embeddings=8192,
    vocab_size=128256,
    padded_vocab_size=128256,
    **REST,
)


def test_a_tiny_model_counted_by_hand():
    # a layer: q k v 2*4*12 = 96, scores and values 2*6*4 = 48, output 2*4*4 = 32,
    # mlp 2*2*4*16 = 256
    # all: 2 * (96 + 48 + 32 + 256) + unembedding 2*4*10 = 80
    assert forward_flops_per_token(TINY, seq_length=6) == 944.0
    assert flops_per_token(TINY, seq_length=6) == 2832.0


def test_grouped_query_attention_has_fewer_key_and_value_products():
    # one head of 2 instead of two: 2 * 2 layers * (k and v) * 4 * 2 fewer
    assert (
        forward_flops_per_token(replace(TINY, num_kv_heads=1), seq_length=6)
        == 944.0 - 2 * 2 * 2 * 4 * 2
    )


def test_a_gated_mlp_has_a_third_matrix():
    assert (
        forward_flops_per_token(replace(TINY, is_gated_mlp=True), seq_length=6)
        == 944.0 + 2 * 2 * 4 * 16
    )


def test_llama_3_8b_at_8192_tokens_costs_what_others_report_in_the_causal_half_convention():
    assert flops_per_token(LLAMA_3_8B, seq_length=8192) / 1e9 == pytest.approx(51.5, abs=0.05)


def test_attention_is_counted_half():
    without = flops_per_token(LLAMA_3_8B, seq_length=0)
    attention = flops_per_token(LLAMA_3_8B, seq_length=8192) - without
    assert attention == 6 * 32 * 4096 * 8192


def test_a_configuration_gives_its_own_shape():
    config = resolve(
        NeoXArgs.from_dict(
            {
                "num_layers": 2,
                "hidden_size": 4,
                "num_attention_heads": 2,
                "seq_length": 6,
                "max_position_embeddings": 8,
                "train_iters": 1,
                "train_micro_batch_size_per_gpu": 1,
            }
        )
    )
    assert model_flops_per_token(config, vocab_size=10) == 2832.0


def test_windows_and_local_layers_attend_to_fewer_tokens():
    # per head dimension four operations for each key: of 8 tokens the mean distance to the first
    # seen one is 4 without a window, 2 - 4 / 16 with one of 2, 5.5 - 5.5^2 / 16 with blocks of 4
    free, narrow, local = (
        forward_flops_per_token(replace(TINY, num_layers=1, attention_reach=reach), seq_length=8)
        for reach in ((), ((2, 1),), ((1, 4),))
    )
    context = TINY.num_attention_heads * TINY.head_dim
    assert free - narrow == pytest.approx(4 * context * (4 - (2 - 4 / 16)))
    assert free - local == pytest.approx(4 * context * (4 - (5.5 - 5.5**2 / 16)))
