"""Keys of the network beside its sizes: heads, norms of queries and keys, biases, positions."""

import pytest

from megatron.neox_arguments.sections.model import RopeScaling

YARN = {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 32}
LLAMA_3 = {
    **{"rope_type": "llama3", "factor": 8, "original_max_position_embeddings": 32},
    **{"low_freq_factor": 1, "high_freq_factor": 4},
}


@pytest.fixture
def model_of(make_config):
    return lambda **keys: make_config(**{"pos_emb": "rotary", **keys}).model


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, (16, 16)),
        ({"head_dim": 32}, (32, 32)),
        ({"head_dim": 32, "rotary_pct": 0.25}, (32, 8)),
        ({"head_dim": 24, "hidden_size": 62}, (24, 24)),
        ({"head_dim": None}, (16, 16)),
    ],
)
def test_heads_may_have_a_size_of_their_own(model_of, keys, expected):
    model = model_of(**keys)
    assert (model.head_dim, model.rotary_dim) == expected


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, "none"),
        ({"use_qk_layernorm": True}, "neox"),
        ({"use_qk_layernorm": True, "qk_norm": "neox"}, "neox"),
        ({"qk_norm": "head", "num_kv_heads": 2}, "head"),
        ({"qk_norm": "none"}, "none"),
        ({"qk_norm": None}, "none"),
    ],
)
def test_queries_and_keys_are_normalised_as_one_of_two_keys_says(model_of, keys, expected):
    assert model_of(**keys).qk_norm == expected


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("output", [True, False, None])
def test_the_output_bias_follows_the_other_unless_it_is_set(model_of, linear, output):
    model = model_of(use_bias_in_attn_linear=linear, use_bias_in_attn_output=output)
    assert model.use_bias_in_attn_linear is linear
    assert model.use_bias_in_attn_output is (linear if output is None else output)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (None, None),
        ({}, None),
        ({"rope_type": "default"}, None),
        ({"type": "linear", "factor": "2"}, RopeScaling(rope_type="linear", factor=2.0)),
        (
            {"rope_type": "dynamic", "type": "dynamic", "factor": 1},
            RopeScaling(rope_type="dynamic", factor=1.0),
        ),
        (
            {**YARN, "mscale": 1, "truncate": False, "beta_fast": None},
            RopeScaling(
                rope_type="yarn",
                factor=4.0,
                original_max_position_embeddings=32,
                mscale=1.0,
                truncate=False,
            ),
        ),
        (
            LLAMA_3,
            RopeScaling(
                rope_type="llama3",
                factor=8.0,
                original_max_position_embeddings=32,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
            ),
        ),
    ],
)
def test_a_scaling_has_the_fields_of_transformers(model_of, section, expected):
    assert model_of(rope_scaling=section).rope_scaling == expected


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"factor": 2}, "rope_scaling.rope_type is missing; use one of linear, dynamic, yarn"),
        (
            {"rope_type": "su"},
            "rope_scaling.rope_type must be one of linear, dynamic, yarn, llama3",
        ),
        ({"rope_type": ["yarn"]}, "rope_scaling.rope_type must be one of linear, dynamic, yarn"),
        ({"rope_type": "yarn", "type": "su"}, "rope_scaling has rope_type 'yarn' and type 'su'"),
        ({"rope_type": "default", "factor": 2}, "rope_scaling.rope_type is default, which has no"),
        ({"rope_type": "linear"}, "rope_scaling.factor is missing; linear needs factor"),
        ({"rope_type": "linear", "factor": None}, "rope_scaling.factor is missing; linear needs"),
        (
            {"rope_type": "linear", "factor": 0.5},
            "rope_scaling.factor must be a number, in [1, 1e6]",
        ),
        (
            {"rope_type": "linear", "factor": -2},
            "rope_scaling.factor must be a number, in [1, 1e6]",
        ),
        ({"rope_type": "linear", "factor": 1e300}, "rope_scaling.factor must be a number, in [1, "),
        ({"rope_type": "linear", "factor": True}, "rope_scaling.factor must be a number, in [1, "),
        ({"rope_type": "linear", "factor": [2]}, "rope_scaling.factor must be a number, in [1, "),
        ({**YARN, "original_max_position_embeddings": 0.5}, "rope_scaling.original_max_position_"),
        ({**YARN, "beta_fast": 1, "beta_slow": 2}, "rope_scaling.beta_fast must be at least beta_"),
        (
            {**YARN, "attention_factor": 0},
            "rope_scaling.attention_factor must be a number, in (0, ",
        ),
        (
            {**YARN, "mscale": 1e300},
            "rope_scaling.mscale must be a number, in [0, 1e6], got 1e+300",
        ),
        ({**YARN, "truncate": 1}, "rope_scaling.truncate must be true or false, got 1"),
        ({**YARN, "low_freq_factor": 1}, "rope_scaling.low_freq_factor has no meaning for yarn"),
        ({**YARN, "rope_theta": 500}, "rope_scaling.rope_theta is a key of its own; write rotary_"),
        ({**YARN, "beta_fest": 1}, "rope_scaling.beta_fest is unknown; "),
        (
            {**LLAMA_3, "high_freq_factor": 1},
            "rope_scaling.high_freq_factor must be above low_freq",
        ),
        ({k: LLAMA_3[k] for k in ("rope_type", "factor")}, "rope_scaling.original_max_position_"),
    ],
)
def test_a_scaling_that_cannot_be_computed_is_one_line(problem, section, expected):
    assert problem(pos_emb="rotary", rope_scaling=section).startswith(expected)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"head_dim": 7}, "rotary_pct 1 rotates 7 of 7 dimensions of a head"),
        ({"head_dim": 0}, "head_dim must be at least 1, got 0"),
        ({"head_dim": -4}, "head_dim must be at least 1, got -4"),
        ({"head_dim": 10**9}, "head_dim must be at most 65536, got 1000000000"),
        ({"qk_norm": "neox", "num_kv_heads": 2}, "qk_norm: GPT-NeoX's norm has a weight per head"),
        (
            {"use_qk_layernorm": True, "num_kv_heads": 2},
            "use_qk_layernorm: GPT-NeoX's norm has a weight per head, num_kv_heads 2 is not 4",
        ),
        ({"use_qk_layernorm": True, "qk_norm": "head"}, "use_qk_layernorm is true, which is qk_"),
        ({"opt_pos_emb_offset": -1, "pos_emb": "learned"}, "opt_pos_emb_offset must be at least 0"),
        (
            {"opt_pos_emb_offset": 2, "pos_emb": "learned", "seq_length": 127},
            "max_position_embeddings must be at least seq_length + opt_pos_emb_offset = 129, got",
        ),
        ({"rope_scaling": YARN, "pos_emb": "learned"}, "rope_scaling needs pos_emb: rotary, got"),
        (
            {"rope_scaling": YARN, "rotary_emb_base": 1},
            "rotary_emb_base must be above 1 with rope_",
        ),
        (
            {"rope_scaling": YARN, "rotary_emb_base": 0.5},
            "rotary_emb_base must be above 1 with rope_scaling: yarn, got 0.5",
        ),
        ({"rotary_emb_base": 0}, "rotary_emb_base must be above 0, got 0"),
        ({"rotary_emb_base": "fast"}, "rotary_emb_base must be a number, got 'fast'"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2}, "rotary_pct": 0.125},
            "rope_scaling: dynamic needs at least 4 rotated dimensions per head, got 2",
        ),
    ],
)
def test_a_network_that_cannot_be_built_is_one_line(problem, keys, expected):
    assert problem(**{"pos_emb": "rotary", **keys}).startswith(expected)


def test_the_first_rows_of_the_positions_are_not_for_texts(make_config):
    config = make_config(pos_emb="learned", opt_pos_emb_offset=2)
    assert (config.model.longest_text, config.data.seq_length) == (126, 126)
    assert make_config(pos_emb="sinusoidal", opt_pos_emb_offset=2).model.longest_text == 128


def test_an_offset_without_positions_and_dynamic_scaling_are_explained(make_config):
    config = make_config(pos_emb="none", opt_pos_emb_offset=2)
    assert config.model.opt_pos_emb_offset == 0
    assert config.notes == (
        "'opt_pos_emb_offset' has no effect: it moves learned and sinusoidal positions, pos_emb is "
        "none",
    )
    dynamic = make_config(pos_emb="rotary", rope_scaling={"type": "dynamic", "factor": 2})
    assert dynamic.notes == (
        "'rope_scaling: dynamic' changes nothing up to max_position_embeddings 128, and "
        "longer texts are not read",
    )
