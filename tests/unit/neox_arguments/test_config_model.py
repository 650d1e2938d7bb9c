import pytest

from megatron.neox_arguments import NeoXArgs, resolve


@pytest.mark.parametrize(
    "written",
    [
        None,
        [[["flash"], 2]],
        [[["flash"], "all"]],
        [[["flash", "global"], "all"]],
        [[["flash"], 1], [["global"], 1]],
        ["global", "flash"],
        "flash",
    ],
)
def test_attention_config_may_give_each_layer_a_type_that_is_built(make_config, written):
    assert make_config(attention_config=written).model == make_config().model


SHAPE = 'attention_config must look like [[["flash"], 12]] or [[["flash"], "all"]], got '


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (
            [[["flash"], 3]],
            "attention_config gives 3 layers, num_layers is 2; make them equal or write 'all'",
        ),
        (
            [[["flash", "flash", "flash"], "all"]],
            "attention_config: 'all' repeats 3 types, num_layers is 2, which is no multiple of it; "
            "write the number of repeats",
        ),
        ([["flash", 2]], SHAPE + "[['flash', 2]]"),
        ([[["flash"], True]], SHAPE + "[[['flash'], True]]"),
        ([[["flash"], "some"]], SHAPE + "[[['flash'], 'some']]"),
        ([[[], 2]], SHAPE + "[[[], 2]]"),
        ([[[1], 2]], SHAPE + "[[[1], 2]]"),
        ([3], SHAPE + "[3]"),
        (
            [[["flsh"], 2]],
            "attention_config: 'flsh': it is unknown; use 'global', 'flash' or 'local'",
        ),
    ],
)
def test_other_attention_configs_are_refused(problem, written, expected):
    assert problem(attention_config=written) == expected


@pytest.mark.parametrize(
    "name",
    "sparse_fixed sparse_variable bigbird bslongformer gmlp amlp mamba rwkv".split(),
)
def test_attention_types_that_are_not_built_are_refused_with_the_reason(problem, name):
    message = problem(attention_config=[[[name], 2]])
    assert message.startswith(f"attention_config: {name!r}: ")
    assert "not part of this version" in message


@pytest.mark.parametrize(
    ("keys", "inner", "is_gated"),
    [
        ({}, 256, False),
        ({"intermediate_size": 100}, 100, False),
        ({"intermediate_size": 100, "mlp_multiple_of": 64}, 128, False),
        ({"expansion_factor": 2.5}, 160, False),
        ({"mlp_inner_size": 90}, 90, False),
        ({"activation": "swiglu"}, 85, True),
        ({"activation": "geglu", "mlp_multiple_of": 8}, 88, True),
        ({"activation": "swiglu", "mlp_inner_size": 172}, 172, True),
        ({"activation": "swiglu", "mlp_inner_size": 172, "intermediate_size": 999}, 172, True),
        ({"mlp_type": "llama"}, 256, True),
        ({"mlp_type": "llama", "intermediate_size": 100}, 100, True),
        ({"mlp_type": "llama", "mlp_inner_size": 90}, 90, True),
        ({"mlp_type": "llama", "expansion_factor": 2}, 42, True),
        ({"mlp_type": "regular"}, 256, False),
    ],
)
def test_the_mlp_has_the_width_that_gpt_neox_builds(make_config, keys, inner, is_gated):
    config = make_config(**keys)
    assert (config.model.mlp_inner_size, config.model.is_gated_mlp) == (inner, is_gated)


@pytest.mark.parametrize(
    ("hidden", "size", "multiple", "inner"),
    [
        (4096, 32768, 256, 11008),  # llama 7B
        (8192, 86016, 4096, 28672),  # llama 2 70B
        (4096, 14336, 14336, 14336),  # llama 3 8B: a multiple as a trick
        (4096, 14336, 1, 4778),  # mistral 7B: a third of what was meant
        (4096, None, 256, 5632),  # without a size
    ],
)
def test_gated_widths_of_published_files(minimal, hidden, size, multiple, inner):
    args = NeoXArgs.from_dict(
        {**minimal, "hidden_size": hidden, "num_attention_heads": 32, "activation": "swiglu"}
        | {"intermediate_size": size, "mlp_multiple_of": multiple}
    )
    assert resolve(args).model.mlp_inner_size == inner


def test_a_gated_intermediate_size_is_explained(make_config):
    notes = make_config(activation="swiglu", intermediate_size=14336).notes
    assert notes == (
        "the gated MLP is 4778 wide: GPT-NeoX builds a third of intermediate_size 14336. "
        "Set mlp_inner_size: 14336 if 14336 was meant",
    )


def test_a_gated_width_without_a_size_is_explained(make_config):
    assert make_config(activation="swiglu").notes == (
        "the gated MLP is 85 wide: GPT-NeoX builds a third of 256, 4 times hidden_size. "
        "Set mlp_inner_size: 256 if Llama's 256 was meant",
    )


@pytest.mark.parametrize(("hidden", "layers", "inner"), [(4096, 32, 11008), (8192, 48, 22016)])
def test_a_llama_mlp_of_old_files_has_the_width_of_llama_and_no_biases(
    minimal, hidden, layers, inner
):
    values = {"hidden_size": hidden, "num_layers": layers, "num_attention_heads": 32}
    values |= {"mlp_type": "llama", "activation": "silu", "model_parallel_size": 2}
    config = resolve(NeoXArgs.from_dict({**minimal, **values}), world_size=2)
    assert config.model.mlp_inner_size == inner
    assert config.model.activation == "swiglu"
    assert not config.model.use_bias_in_mlp
    assert config.notes == (
        "'mlp_type: llama' is an old spelling; read as 'activation: swiglu, "
        f"mlp_inner_size: {inner}, use_bias_in_mlp: false'",
    )


def test_biases_of_a_llama_mlp_are_kept_where_they_are_asked_for(make_config):
    assert make_config(mlp_type="llama", use_bias_in_mlp=True).model.use_bias_in_mlp


def test_sizes_follow_from_the_model(make_config):
    config = make_config(pos_emb="rotary", rotary_pct=0.25, num_kv_heads=2)
    assert (config.model.head_dim, config.model.num_kv_heads, config.model.rotary_dim) == (16, 2, 4)
    assert make_config().model.rotary_dim == 0
    assert make_config().model.num_kv_heads == 4


def test_the_sequence_length_is_that_of_the_positions_unless_set(make_config):
    config = make_config()
    assert config.data.seq_length == config.data.seq_length == 128
    assert make_config(seq_length=32).data.seq_length == 32


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            {"hidden_size": 66},
            "hidden_size 66 is not a multiple of num_attention_heads 4; set hidden_size to 64, "
            "change the heads or set head_dim",
        ),
        (
            {"seq_length": 256},
            "max_position_embeddings must be at least seq_length 256, got 128",
        ),
        ({"seq_length": 0}, "seq_length must be at least 1, got 0"),
        ({"seq_length": -5}, "seq_length must be at least 1, got -5"),
        ({"max_position_embeddings": -5}, "max_position_embeddings must be at least 1, got -5"),
        (
            {"expansion_factor": 0.001},
            "expansion_factor 0.001 makes an MLP of width 0; raise it, or set mlp_inner_size",
        ),
        (
            {"intermediate_size": 1, "activation": "swiglu"},
            "intermediate_size 1 makes an MLP of width 0; raise it, or set mlp_inner_size",
        ),
        ({"intermediate_size": -1}, "intermediate_size must be above 0, got -1"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"num_kv_heads": 3}, "num_kv_heads must divide num_attention_heads 4, got 3"),
        (
            {"pos_emb": "rotary", "rotary_pct": 0.2},
            "rotary_pct 0.2 rotates 3 of 16 dimensions of a head; their number must be even and at "
            "least 2",
        ),
        ({"layernorm_epsilon": 0}, "layernorm_epsilon must be above 0, got 0.0"),
        ({"mlp_inner_size": 0}, "mlp_inner_size must be above 0, got 0"),
        (
            {"make_vocab_size_divisible_by": 0},
            "make_vocab_size_divisible_by must be at least 1, got 0",
        ),
        ({"sliding_window_width": 0}, "sliding_window_width must be at least 1, got 0"),
        (
            {"pos_emb": "rpe", "rpe_max_distance": 16},
            "rpe_max_distance must be above half of rpe_num_buckets 32, got 16",
        ),
        ({"rpe_num_buckets": 1}, "rpe_num_buckets must be 2 to 65536, got 1"),
        (
            {"attention_config": ["local"] * 2, "sparsity_config": {"block": 0}},
            "sparsity_config.block must be a whole number, 1 to 1024, got 0",
        ),
        (
            {"attention_config": ["local"] * 2, "sparsity_config": {"blocks": 8}},
            "unknown key 'sparsity_config.blocks'; did you mean 'block'?",
        ),
        ({"norm": "te_rmsnorm"}, "norm: 'te_rmsnorm' is not part of this version; use rmsnorm"),
        (
            {"num_unique_layers": 1},
            "num_unique_layers is 1: layers cannot share weights; remove it",
        ),
        (
            {"mlp_type": "llama", "activation": "relu"},
            "mlp_type llama is a SiLU-gated MLP, activation is 'relu'; drop mlp_type",
        ),
        ({"mlp_type": "mixed"}, "mlp_type must be one of regular, llama, got 'mixed'"),
    ],
)
def test_wrong_models_are_refused(problem, keys, expected):
    assert problem(**keys) == expected


def test_an_unknown_init_method_lists_the_known_ones(problem):
    assert problem(init_method="kaiming") == (
        "init_method must be one of normal, scaled_normal, orthogonal, scaled_orthogonal, "
        "xavier_uniform, xavier_normal, wang_init, small_init, single_residual_scaled_normal, "
        "got 'kaiming'"
    )


def test_a_row_output_layer_is_read_as_column(make_config):
    notes = make_config(output_layer_parallelism="row").notes
    assert notes == ("'output_layer_parallelism: row' gave wrong losses; read as 'column'",)


def reach_of(config):
    return config.model.attention_reach


def test_a_sliding_window_of_the_whole_context_is_noted(make_config):
    for width in (127, 128):
        config = make_config(sliding_window_width=width, max_position_embeddings=128)
        (note,) = config.notes
        assert note.startswith(f"'sliding_window_width' has no effect: {width} is not less than")
        assert reach_of(config) == ()
    config = make_config(sliding_window_width=100, seq_length=64, max_position_embeddings=128)
    assert config.notes[0].startswith("'sliding_window_width' has no effect in training: 100")
    assert reach_of(config) == ((100, 1),) * 2


def test_flash_layers_have_the_window_as_in_gpt_neox_and_all_without_attention_config(make_config):
    alternating = make_config(sliding_window_width=9, attention_config=[[["flash", "global"], 1]])
    assert reach_of(alternating) == ((9, 1), None)
    everywhere = make_config(sliding_window_width=9)
    assert reach_of(everywhere) == ((9, 1), (9, 1))
    assert "GPT-NeoX gives it to 'flash' layers" in everywhere.notes[0]
    nowhere = make_config(sliding_window_width=9, attention_config="global")
    assert reach_of(nowhere) == ()
    assert "has no 'flash' layer" in nowhere.notes[0]


@pytest.mark.parametrize(
    ("sparsity", "expected"),
    [
        (None, (2, 16)),
        ({"block": 8, "num_local_blocks": 32}, (16, 8)),
        ({"num_sliding_window_blocks": 3}, (1, 16)),
        ({"num_local_blocks": 1, "num_sliding_window_blocks": 9}, (0, 16)),
    ],
)
def test_local_layers_see_half_the_blocks_before_their_own(make_config, sparsity, expected):
    config = make_config(attention_config=[[["local", "global"], 1]], sparsity_config=sparsity)
    assert reach_of(config) == (expected, None)


def test_keys_of_other_kinds_of_attention_are_noted(make_config):
    notes = make_config(
        attention_config="local", sparsity_config={"num_global_blocks": 2, "block": 4}
    ).notes
    assert notes == ("'sparsity_config.num_global_blocks' has no effect on 'local' layers",)
    notes = make_config(sparsity_config={"block": 4}).notes
    assert notes == ("'sparsity_config' has no effect: attention_config has no 'local' layer",)
    notes = make_config(pos_emb="alibi", rpe_num_buckets=8, reset_position_ids=True).notes
    assert "'rpe_num_buckets' has no effect: pos_emb is 'alibi'" in notes
    assert any(note.startswith("'reset_position_ids' has no effect: pos_emb") for note in notes)


@pytest.mark.parametrize("kind", ["mamba", "rwkv", "gmlp"])
def test_layers_without_heads_are_refused_for_their_kind_alone(problem, kind):
    message = problem(
        attention_config=[[[kind], "all"]],
        **{"num_attention_heads": 12, "num_kv_heads": 5, "pos_emb": "rotary", "rotary_pct": 0.01},
    )
    assert message.startswith(f"attention_config: {kind!r}: ")


def test_layers_with_heads_are_still_checked(problems):
    assert len(problems(attention_config=[[["bigbird"], "all"]], num_attention_heads=12)) == 2
