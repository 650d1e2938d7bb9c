"""The table of families: which rows go where, which fields mean what, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron.neox_arguments import ConfigError
from tests.interop.conversions import shape_of
from tools.hf.families import FAMILIES, family_for, family_of_config
from tools.hf.llama import KINDS
from tools.hf.settings import resolve_model_fields
from tools.hf.weights import Rows, Weight

LLAMA: dict[str, Any] = {
    **{"num_layers": 1, "hidden_size": 16, "num_attention_heads": 4, "num_kv_heads": 2},
    **{"max_position_embeddings": 64, "pos_emb": "rotary", "norm": "rmsnorm"},
    **{"rms_norm_epsilon": 1e-5, "activation": "swiglu", "mlp_inner_size": 24},
    **{"use_bias_in_attn_linear": False, "use_bias_in_mlp": False, "no_weight_tying": True},
    "tokenizer_type": "CharLevelTokenizer",
}
QWEN2 = {"use_bias_in_attn_linear": True, "use_bias_in_attn_output": False}
ORIGINAL = "original_max_position_embeddings"
LLAMA3 = {
    **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    ORIGINAL: 32,
}


def their_config(model_type: str = "llama", **changes: Any) -> dict[str, Any]:
    """As the folders on the Hub have it, written by transformers 4."""
    config = {
        **{"model_type": model_type, "vocab_size": 24, "hidden_size": 16},
        **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
        **{"intermediate_size": 40, "hidden_act": "silu", "max_position_embeddings": 64},
        **{"rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False},
        **changes,
    }
    return {key: value for key, value in config.items() if value != "absent"}


# rows


def test_rows_of_queries_keys_and_values_are_taken_from_each_group():
    rows = Rows(2, (3, 1, 1), 2)  # 2 groups of 3 queries, a key and a value, 2 wide
    assert list(rows.ranges(0)) == [(0, 6), (10, 16)]
    assert list(rows.ranges(1)) == [(6, 8), (16, 18)]
    assert list(rows.ranges(2)) == [(8, 10), (18, 20)]
    assert list(rows.pieces(0, 20)) == [
        *[(0, 0, 6), (1, 0, 2), (2, 0, 2)],
        *[(0, 6, 12), (1, 2, 4), (2, 2, 4)],
    ]
    assert list(rows.pieces(5, 11)) == [(0, 5, 6), (1, 0, 2), (2, 0, 2), (0, 6, 7)]


def test_gate_and_input_are_the_two_rows_of_our_weight():
    weight = Weight("mlp", ("gate", "up"), Rows(1, (1, 1), 1, is_stacked=True))
    gate, up = torch.zeros(3, 2), torch.ones(3, 2)
    assert torch.equal(weight.joined([gate, up]), torch.stack([gate, up]))
    assert weight.their_shape(1, (2, 3, 2)) == (3, 2)
    assert weight.our_shape((3, 2)) == (2, 3, 2)
    assert weight.ranges(1, (2, 3, 2)) == [(1, 2)]


@settings(max_examples=50)
@given(groups=st.integers(1, 4), queries=st.integers(1, 4), width=st.integers(1, 3), data=st.data())
def test_any_rows_are_those_of_the_joined_tensor(groups, queries, width, data):
    rows = Rows(groups, (queries, 1, 1), width)
    weight = Weight("qkv", ("q", "k", "v"), rows)
    ours = torch.arange(groups * rows.group_size * 2.0).view(-1, 2)
    tensors = [
        torch.cat([ours[first:end] for first, end in rows.ranges(part)]) for part in range(3)
    ]
    assert torch.equal(weight.joined(tensors), ours)
    first = data.draw(st.integers(0, len(ours)))
    end = data.draw(st.integers(first, len(ours)))
    pieces = [tensors[part][low:high] for part, low, high in rows.pieces(first, end)]
    assert torch.equal(torch.cat([torch.empty(0, 2), *pieces]), ours[first:end])


# export


@pytest.mark.parametrize(
    ("changes", "family"),
    [
        ({}, "llama"),
        ({"rope_scaling": LLAMA3}, "llama"),
        ({"use_bias_in_attn_linear": True, "use_bias_in_mlp": True}, "llama"),
        ({"activation": "geglu", "bias_gelu_fusion": True, "no_weight_tying": False}, "llama"),
        ({"hidden_size": 18, "head_dim": 6}, "mistral"),
        (QWEN2, "qwen2"),
        ({"qk_norm": "head", "head_dim": 8}, "qwen3"),
    ],
)
def test_the_first_family_that_expresses_a_network_is_taken(changes, family):
    assert family_for(shape_of({**LLAMA, **changes}, 512)).model_type == family


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("llama", {"use_bias_in_attn_linear": True, "use_bias_in_mlp": True}),
        ("llama", {"rope_scaling": LLAMA3, "head_dim": 6, "no_weight_tying": False}),
        ("llama", {"activation": "reglu", "rms_norm_epsilon": 0.01, "init_method_std": 0.5}),
        ("mistral", {"head_dim": 8, "attention_dropout": 0.125}),
        ("qwen2", {**QWEN2, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
        ("qwen3", {"qk_norm": "head", "head_dim": 8, "num_kv_heads": 4}),
        ("qwen3", {"qk_norm": "head", "use_bias_in_attn_linear": True, "head_dim": 8}),
    ],
)
def test_a_configuration_goes_both_ways(family, changes):
    shape = shape_of({**LLAMA, **changes}, 512)
    row = FAMILIES[family]
    assert row.refusals(shape) == []
    config = json.loads(json.dumps(row.write_config(shape)))
    back = {**row.read_config(config), "tokenizer_type": "CharLevelTokenizer"}
    assert shape_of(back, 512) == shape


@pytest.mark.parametrize(
    ("family", "changes", "lines"),
    [
        ("llama", {"norm": "layernorm"}, ["norm: LlamaForCausalLM cannot express 'layernorm'"]),
        ("llama", {"rotary_pct": 0.5}, ["rotary_dim: LlamaForCausalLM cannot express 2"]),
        ("llama", {"gpt_j_residual": True}, ["gpt_j_residual: LlamaForCausalLM cannot"]),
        ("llama", {"activation": "silu"}, ["activation: LlamaForCausalLM cannot express 'silu'"]),
        ("llama", {"qk_norm": "head"}, ["qk_norm: LlamaForCausalLM cannot express 'head'"]),
        ("llama", QWEN2, ["use_bias_in_attn_output: LlamaForCausalLM cannot express False"]),
        ("mistral", {"use_bias_in_mlp": True}, ["use_bias_in_mlp: MistralForCausalLM cannot"]),
        ("qwen2", {}, ["use_bias_in_attn_linear: Qwen2ForCausalLM cannot express False"]),
        ("qwen2", {**QWEN2, "head_dim": 8}, ["head_dim: Qwen2ForCausalLM cannot express 8"]),
        ("qwen3", {}, ["qk_norm: Qwen3ForCausalLM cannot express 'none'"]),
        (
            "neox",
            {},
            [
                "norm: GPTNeoXForCausalLM cannot express 'rmsnorm'",
                "activation: GPTNeoXForCausalLM cannot express 'swiglu'",
                "num_kv_heads: GPTNeoXForCausalLM cannot express 2",
                "use_bias_in_mlp: GPTNeoXForCausalLM cannot express False",
            ],
        ),
    ],
)
def test_a_forced_family_names_each_field_that_it_cannot_express(family, changes, lines):
    with pytest.raises(ConfigError) as caught:
        family_for(shape_of({**LLAMA, **changes}, 512), family)
    found = str(caught.value).splitlines()
    assert len(found) == len(lines)
    for line, start in zip(found, lines, strict=True):
        assert line.startswith(start)


def test_without_a_family_the_one_that_lacks_least_is_named():
    with pytest.raises(ConfigError) as caught:
        family_for(shape_of({**LLAMA, "pos_emb": "learned"}, 512))
    assert str(caught.value).startswith("pos_emb: LlamaForCausalLM cannot express 'learned'; ")


def test_a_written_configuration_serves_transformers_4_and_5():
    shape = shape_of({**LLAMA, "rope_scaling": LLAMA3, "rotary_emb_base": 500000}, 512)
    config = FAMILIES["llama"].write_config(shape)
    assert config["rope_theta"] == 500000.0
    assert config["rope_scaling"] == LLAMA3
    assert config["rope_parameters"] == {
        **LLAMA3,
        **{"rope_theta": 500000.0, "partial_rotary_factor": 1.0},
    }
    plain = FAMILIES["llama"].write_config(shape_of(LLAMA, 512))
    assert plain["rope_scaling"] is None
    assert plain["rope_parameters"]["rope_type"] == "default"


# import


@pytest.mark.parametrize(
    ("model_type", "changes", "expected"),
    [
        ("llama", {}, {"num_kv_heads": 2, "use_bias_in_attn_linear": False, "qk_norm": "none"}),
        ("llama", {"num_key_value_heads": "absent"}, {"num_kv_heads": 4}),
        ("llama", {"num_key_value_heads": None, "head_dim": None}, {"num_kv_heads": 4}),
        ("llama", {"rope_theta": "absent"}, {"rotary_emb_base": 10000}),
        ("llama", {"attention_bias": True}, {"use_bias_in_attn_output": True}),
        ("llama", {"mlp_bias": True}, {"use_bias_in_mlp": True}),
        ("llama", {"hidden_act": "gelu"}, {"activation": "geglu", "bias_gelu_fusion": False}),
        ("llama", {"head_dim": 6}, {"head_dim": 6}),
        ("llama", {"rope_scaling": {**LLAMA3, "ignored": 3}}, {"rope_scaling": LLAMA3}),
        (
            "qwen2",
            {"rope_scaling": {"type": "yarn", "factor": 4.0}},
            {
                "rope_scaling": {
                    **{"rope_type": "yarn", "factor": 4.0},
                    "original_max_position_embeddings": 64,
                }
            },
        ),
        (
            "llama",
            {"rope_theta": "absent", "rope_parameters": {"rope_theta": 7.0}},
            {"rotary_emb_base": 7},
        ),
        (  # a user of transformers 5 adds the section that a model card recommends
            "llama",
            {"rope_theta": 7.0, "rope_scaling": LLAMA3}
            | {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}},
            {"rotary_emb_base": 7, "rope_scaling": LLAMA3},
        ),
        (
            "llama",
            {"rope_scaling": {}, "rope_parameters": {"rope_type": "linear", "factor": 2.0}},
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        ),
        (
            "qwen2",
            {"rope_scaling": {"type": "yarn", "factor": 4.0}, ORIGINAL: 16},
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, ORIGINAL: 16}},
        ),
        ("llama", {ORIGINAL: 16}, {"rope_scaling": None}),  # the plain rotation has no such field
        ("llama", {"rope_theta": 10000.5}, {"rotary_emb_base": 10000.5}),
        ("llama", {"rope_theta": 1e20}, {"rotary_emb_base": 1e20}),
        ("mistral", {"sliding_window": None}, {"num_kv_heads": 2}),
        ("qwen2", {}, {"use_bias_in_attn_linear": True, "use_bias_in_attn_output": False}),
        ("qwen3", {"head_dim": 8}, {"head_dim": 8, "qk_norm": "head"}),
        ("qwen3", {}, {"head_dim": 128}),
    ],
)
def test_fields_of_theirs_have_the_meaning_that_transformers_gives_them(
    model_type, changes, expected
):
    fields = FAMILIES[model_type].read_config(their_config(model_type, **changes))
    assert {key: fields.get(key) for key in expected} == expected
    resolve_model_fields({**fields, "tokenizer_type": "CharLevelTokenizer"})


@pytest.mark.parametrize(
    ("model_type", "changes", "window"),
    [
        ("mistral", {"sliding_window": 64}, {}),  # as long as the longest text
        ("mistral", {"sliding_window": 16}, {"sliding_window_width": 15}),
        ("mistral", {}, {}),  # 4096 if the file has no value
        ("llama", {"sliding_window": 16}, {}),  # a field that the class has not
        ("qwen2", {"sliding_window": 16}, {}),  # off by default
        ("qwen2", {"sliding_window": 16, "use_sliding_window": True}, {}),  # from layer 28 on
        (
            "qwen3",
            {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 0},
            {"sliding_window_width": 15},
        ),
        (
            "qwen3",
            {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1},
            {"sliding_window_width": 15, "attention_config": ["global", "flash"]},
        ),
    ],
)
def test_a_window_of_theirs_counts_the_token_itself_and_ours_does_not(model_type, changes, window):
    fields = FAMILIES[model_type].read_config(their_config(model_type, **changes))
    keys = ("sliding_window_width", "attention_config")
    assert {key: fields[key] for key in keys if key in fields} == window


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "absent"}, "lacks hidden_size"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers: must be a whole number"),
        ({"num_key_value_heads": 0}, "num_key_value_heads: must be a whole number from 1"),
        ({"head_dim": -4}, "head_dim: must be a whole number from 1"),
        ({"attention_bias": 1}, "attention_bias: must be true or false, got 1"),
        ({"mlp_bias": None}, "mlp_bias: must be true or false, got None"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps: must be a number from 0 to 1"),
        ({"hidden_act": "quick_gelu"}, "hidden_act: 'quick_gelu' is not supported"),
        ({"rope_theta": 0}, "rope_theta: must be a finite number above 0, got 0"),
        ({"rope_theta": -1e4}, "rope_theta: must be a finite number above 0, got -10000.0"),
        ({"rope_theta": float("inf")}, "rope_theta: must be a finite number above 0"),
        ({"rope_scaling": []}, "rope_scaling: must be an object"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": "4"}},
            "rope_scaling.factor: must be a number",
        ),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope_type 'longrope' is not supported"),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "partial_rotary_factor must be 1, got 0.5",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "rope_parameters.full_attention: must be the same for all layers",
        ),
        (
            {"rope_scaling": LLAMA3, "rope_parameters": {"rope_theta": 7.0}},
            "rope_parameters.rope_theta: is 7.0, but transformers reads only rope_scaling",
        ),
        (
            {"rope_scaling": LLAMA3, "rope_parameters": {"rope_type": "linear", "factor": 8.0}},
            "rope_parameters.rope_type: is 'linear', but transformers reads only rope_scaling",
        ),
        ({"rope_scaling": LLAMA3, ORIGINAL: 16}, f"{ORIGINAL}: is 16, and "),
        ({"layer_types": 5}, "layer_types: must be a list, got 5"),
        ({"layer_types": [1, 2]}, "layer_types[0]: must be text, got 1"),
    ],
)
def test_odd_values_are_refused_by_field_and_value(changes, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        FAMILIES["llama"].read_config(their_config(**changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_window_of_one_token_is_refused_by_the_name_it_has_in_the_file():
    with pytest.raises(ValueError, match=r"^sliding_window: is 1, "):
        FAMILIES["mistral"].read_config(their_config("mistral", sliding_window=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mixtral"}, "model_type: 'mixtral' is not supported; known are gpt_neox, "),
        ({"model_type": "qwen2_moe"}, "model_type: 'qwen2_moe' is not supported"),
        ({"model_type": None}, "model_type: None is not supported"),
        ({"model_type": "absent"}, "model_type: None is not supported"),
        ({"model_type": ["llama"]}, "model_type: ['llama'] is not supported"),
        ({"num_local_experts": 8}, "num_local_experts: 8: mixtures of experts"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: {'bits': 4}: the weights are"),
    ],
)
def test_another_network_than_the_plain_one_is_refused(changes, message):
    with pytest.raises(ConfigError) as caught:
        family_of_config(their_config(**changes))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("model_type", sorted(KINDS))
def test_a_scaling_without_its_fields_is_one_line(model_type):
    config = their_config(model_type, rope_scaling={"rope_type": "linear", "factor": None})
    fields = FAMILIES[model_type].read_config(config)
    with pytest.raises(ConfigError) as caught:
        resolve_model_fields({**fields, "tokenizer_type": "CharLevelTokenizer"})
    assert str(caught.value).startswith("rope_scaling.factor is missing; ")
    assert len(str(caught.value).splitlines()) == 1


def test_documentation_names_all_families():
    text = (Path(__file__).resolve().parents[3] / "docs/families.md").read_text(encoding="utf-8")
    for family in FAMILIES.values():
        assert f"`{family.model_type}`" in text
        assert f"`{family.architecture}`" in text
