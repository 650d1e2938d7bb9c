"""The last value that a key takes, and the first that it does not."""

import pytest

from megatron.neox_arguments import NeoXArgs, resolve

MINIMAL = {
    **{"num_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "train_iters": 1},
    **{"max_position_embeddings": 8, "train_micro_batch_size_per_gpu": 1},
}

EDGES = [
    # key, accepted, refused
    ("master_port", 1, 0),
    ("master_port", 65535, 65536),
    ("seed", 1, 0),
    ("distributed_timeout_minutes", 525_600, 525_601),
    ("distributed_timeout_minutes", 0.1, 0.0),
    ("gradient_predivide_factor", 0.1, 0.0),
    ("attention_dropout", 0.0, -0.1),
    ("attention_dropout", 0.99, 1.0),
    ("hidden_dropout", 0.99, 1.0),
    ("z_loss", 0.0, -1e-6),
    ("warmup", 1.0, 1.01),
    ("warmup", 0.0, -0.01),
    ("lr_decay_fraction", 1.0, 1.01),
    ("lr_decay_fraction", 0.01, 0.009),  # of 100 iterations: one, and less than one
    ("lr_decay_iters", 1, 0),
    ("min_lr", 1e-3, 1.1e-3),  # of a rate of 1e-3
    ("weight_decay", 0.0, -0.1),
    ("gradient_clipping", 0.0, -1.0),
    ("rotary_pct", 1.0, 1.01),
    ("rotary_pct", 0.125, 0.0625),  # of 16 dimensions: 2 and 1
    ("rotary_pct", 0.25, 0.1875),  # 4 and 3
    ("num_kv_heads", 2, 3),
    ("num_kv_heads", 4, 5),
    ("num_kv_heads", 1, 0),
    ("max_position_embeddings", 128, 127),  # a seq_length of 128
    ("layernorm_epsilon", 1e-9, 0.0),
    ("init_method_std", 1e-9, 0.0),
    ("train_micro_batch_size_per_gpu", 1, 0),
    ("num_gpus", 4096, 4097),
    ("num_gpus", 1, 0),
    ("num_nodes", 1, 0),
    ("num_nodes", -1, -2),
    ("weighted_sampler_alpha", 0.0, -0.1),
    ("mlp_inner_size", 1, 0),
    ("intermediate_size", 1, 0),
]
PARAMS = [
    ("betas", [0.0, 0.999], [0.0, 1.0]),
    ("betas", [0.999, 0.0], [1.0, 0.0]),
    ("betas", [0.9, 0.95], [0.9, -0.1]),
    ("eps", 0.0, -1e-8),
    ("lr", 0.0, -1e-4),
    ("weight_decay", 0.0, -0.1),
    ("max_grad_norm", 0.0, -1.0),
]
FP16 = [("hysteresis", 0, -1), ("loss_scale", 0, -1), ("loss_scale_window", 0, -1)]


@pytest.mark.parametrize(("key", "accepted", "refused"), EDGES)
def test_a_key_is_refused_beyond_its_edge_by_name_and_value(key, accepted, refused, problems):
    around = {"pos_emb": "rotary", "seq_length": 128, "optimizer": adam(lr=1e-3)}
    assert problems(1, **{**around, key: accepted}) == []
    found = problems(1, **{**around, key: refused})
    assert len(found) == 1
    assert key in found[0]
    assert f"{refused:g}" in found[0] or str(refused) in found[0]


@pytest.mark.parametrize(("name", "accepted", "refused"), PARAMS)
def test_a_number_of_the_optimizer_is_refused_beyond_its_edge(name, accepted, refused, problems):
    assert problems(1, optimizer=adam(**{name: accepted})) == []
    (found,) = problems(1, optimizer=adam(**{name: refused}))
    assert f"optimizer.params.{name}" in found


@pytest.mark.parametrize(("name", "accepted", "refused"), FP16)
def test_a_number_of_the_loss_scale_is_refused_beyond_its_edge(name, accepted, refused, problems):
    assert problems(1, fp16={"enabled": True, name: accepted}) == []
    (found,) = problems(1, fp16={"enabled": True, name: refused})
    assert f"fp16.{name}" in found


def adam(**params):
    return {"type": "Adam", "params": params}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"warmup": 0.01}, (100, 1.0)),
        ({"warmup": 0.25, "lr_decay_iters": 40}, (40, 10.0)),
        ({"warmup": 0.1, "lr_decay_fraction": 0.555}, (55, 5.5)),
        ({"warmup": 0.0}, (100, 0.0)),
    ],
)
def test_lengths_of_the_schedule(values, expected, make_config):
    config = make_config(1, **values)
    assert config.schedule.decay_iters == expected[0]
    assert config.schedule.warmup_iters == pytest.approx(expected[1])


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        # (train batch, micro batch, accumulation) on 4 data-parallel ranks
        ({"train_batch_size": 48, "train_micro_batch_size_per_gpu": 3}, (48, 3, 4)),
        ({"train_batch_size": 48, "gradient_accumulation_steps": 2}, (48, 6, 2)),
        ({"train_batch_size": 48}, (48, 12, 1)),
        ({"train_micro_batch_size_per_gpu": 3}, (12, 3, 1)),
        (
            {"train_micro_batch_size_per_gpu": 3, "gradient_accumulation_steps": 5},
            (60, 3, 5),
        ),
    ],
)
def test_the_batch_is_completed_from_what_is_given(keys, expected, make_config):
    values = {"train_micro_batch_size_per_gpu": None, **keys}
    config = make_config(8, model_parallel_size=2, **values)
    found = (
        config.batch.train_batch_size,
        config.batch.micro_batch_size,
        config.batch.gradient_accumulation_steps,
    )
    assert found == expected
    assert config.layout.data_parallel_size == 4


@pytest.mark.parametrize(
    ("keys", "saved"),
    [
        ({"checkpoint_factor": 30}, [30, 60, 90, 100]),
        ({"checkpoint_factor": 50, "extra_save_iters": [7, 0]}, [0, 7, 50, 100]),
        ({"checkpoint_scale": "log", "checkpoint_factor": 3}, [1, 3, 9, 27, 81, 100]),
        # 2.5, 6.25, 15.6, 39.06, 97.6: rounded down
        ({"checkpoint_scale": "log", "checkpoint_factor": 2.5}, [1, 2, 6, 15, 39, 97, 100]),
        ({"extra_save_iters": [5]}, [5, 100]),
    ],
)
def test_the_iterations_that_are_saved(keys, saved, make_config, tmp_path):
    config = make_config(1, save=str(tmp_path), **keys)
    assert [step for step in range(101) if config.saving.is_save_step(step, last_step=100)] == saved


@pytest.mark.parametrize(
    ("argument", "environment", "keys", "expected"),
    [
        (None, None, {}, 1),
        (None, None, {"world_size": 2}, 2),
        (None, None, {"world_size": 2, "num_gpus": 3}, 3),
        (None, None, {"num_gpus": 3, "global_num_gpus": 4}, 4),
        (None, "5", {"global_num_gpus": 4}, 5),
        (6, "5", {"global_num_gpus": 4}, 6),
    ],
)
def test_the_number_of_processes_is_the_first_that_is_told(
    argument, environment, keys, expected, monkeypatch
):
    if environment is not None:
        monkeypatch.setenv("WORLD_SIZE", environment)
    config = resolve(NeoXArgs.from_dict({**MINIMAL, **keys}), world_size=argument)
    assert config.layout.world_size == expected
