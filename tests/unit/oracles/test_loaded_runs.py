"""What a run takes over from a checkpoint, for each key that says so; and how it begins."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron.engine.build import _dropout_seed, build_model_config
from megatron.mpu import RankGrid, Topology
from megatron.neox_arguments import NeoXArgs, resolve
from megatron.runtime import accelerator
from tests.process_group import engine_of_one
from tests.unit.oracles.test_saved_training import make_hook
from tests.unit.oracles.training_runs import (
    SETTINGS,
    configuration,
    load_runner,
    random_text,
    run_steps,
    values,
)

NETWORK = {"pos_emb": "rotary", "no_weight_tying": True, "hidden_dropout": 0.1}
MOMENTS = ("exp_avg", "exp_avg_sq")


@pytest.fixture(scope="module", autouse=True)
def one_rank():
    with engine_of_one(configuration()):
        yield


@pytest.fixture
def saved(tmp_path, monkeypatch) -> dict[str, Any]:
    """A run of three steps: its settings, and what it held at its end."""
    settings = {**NETWORK, "save": str(tmp_path), "load": str(tmp_path), "checkpoint_factor": 3}
    loaded, config = load_runner(monkeypatch, **settings)
    source = random_text(config)
    run_steps(loaded.runner, config, make_hook(loaded, config, source), last_step=3, source=source)
    return {
        "settings": settings,
        "held": values(loaded.runner, MOMENTS),
        "random": accelerator.rng_state(),
    }


@pytest.mark.parametrize(
    ("keys", "step", "has_moments", "has_random_state"),
    [
        ({}, 3, True, True),
        ({"no_load_optim": True}, 3, False, True),
        ({"no_load_rng": True}, 3, True, False),
        ({"finetune": True}, 0, False, False),
        ({"iteration": 3}, 3, True, True),
    ],
)
def test_what_is_taken_over(keys, step, has_moments, has_random_state, saved, monkeypatch):
    loaded, _ = load_runner(monkeypatch, **{**saved["settings"], **keys})
    found = values(loaded.runner, MOMENTS)
    assert ("exp_avg" in found) == ("exp_avg_sq" in found) == has_moments
    for kind, tensors in found.items():
        assert all(torch.equal(t, saved["held"][kind][name]) for name, t in tensors.items())
    assert (loaded.state.step, loaded.state.applied_steps) == (step, step)
    assert (loaded.state.consumed_samples, loaded.state.consumed_tokens) == (4 * step, 48 * step)
    assert (loaded.mixture_state is None) == (step == 0)
    now = accelerator.rng_state()
    is_same = all(torch.equal(now[name], saved["random"][name]) for name in now)
    assert is_same == has_random_state


def test_a_run_without_a_checkpoint_begins_with_its_seed(monkeypatch, tmp_path):
    first, _ = load_runner(monkeypatch, **NETWORK, seed=5)
    again, _ = load_runner(monkeypatch, **NETWORK, seed=5)
    other, _ = load_runner(monkeypatch, **NETWORK, seed=6)
    name = "2.mlp.dense_h_to_4h.weight"
    weights = [values(loaded.runner, ())["fp32"][name] for loaded in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_dropout_differs_between_replicas_and_stages_and_not_in_a_tensor_group():
    grid = RankGrid(pipe=2, data=3, model=2)
    seeds: dict[tuple[int, int], set[int]] = {}
    for rank in range(grid.size):
        topology = Topology(grid, rank, None, None, None)
        place = (topology.pipe_rank, topology.data_rank)
        seeds.setdefault(place, set()).add(_dropout_seed(100, topology))
    assert all(len(found) == 1 for found in seeds.values())
    assert len(set().union(*seeds.values())) == 6


@pytest.mark.parametrize(
    ("vocab", "divisor", "parts", "expected"),
    [(61, 64, 1, 64), (61, 8, 2, 64), (61, 5, 3, 75), (61, 1, 4, 64), (64, 64, 2, 64)],
)
def test_the_vocabulary_is_padded_for_the_divisor_and_the_tensor_group(
    vocab, divisor, parts, expected
):
    changes = {
        "make_vocab_size_divisible_by": divisor,
        "model_parallel_size": parts,
        **{"hidden_size": 48, "num_attention_heads": 12},
    }
    config = resolve(NeoXArgs.from_dict({**SETTINGS, **changes}), world_size=parts)
    tokenizer: Any = SimpleNamespace(vocab_size=vocab)
    shape = build_model_config(config, tokenizer)
    assert (shape.vocab_size, shape.padded_vocab_size) == (vocab, expected)
