"""Hostile settings of mixing for `fuzz`: what is not refused must make a mixture that can be used.

Each case sets a method and a few keys of mixing to odd values. The configuration is refused with
messages, or the mixture is built for domains of odd sizes and observes odd losses. A warning of
numpy is a fault too, since it would appear among the lines of a run.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from megatron.data.data_utils import build_controller
from megatron.errors import UserError
from megatron.neox_arguments import NeoXArgs, RunConfig, resolve
from megatron.sizing.mixture import DomainSize, train_weights
from odm import Signal
from odm.methods import METHODS

__all__ = ["run_cases"]

DOMAINS = ("a", "b", "c")
STEPS = 7
BATCH = 8
_MAX_CASES = 10**9

MODEL: dict[str, Any] = {
    **{"num_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "seq_length": 8},
    **{"max_position_embeddings": 8, "train_iters": 20, "train_batch_size": BATCH},
    **{"train_micro_batch_size_per_gpu": 4, "optimizer": {"type": "Adam", "params": {"lr": 0.001}}},
    **{f"{split}_data_paths": [f"{n}/x" for n in DOMAINS] for split in ("train", "valid", "test")},
    **{"use_named_train_datasets": True, "use_named_eval_datasets": True, "global_num_gpus": 1},
}
NUMBERS: tuple[float, ...] = (
    *(0, 1, 2, 3, 10, 100, -1, 2**53, 2**63, 10**18, 0.5, 1 / 3, 0.3333333, 0.9999999999),
    *(0.1, 0.05, 1e-3, 1e-17, 5e-324, 1e-300, 1e6, 1e300, 1e308, 1.7e308),
)
SIZES = ((100, 200, 50), (1, 1, 1), (10**9,) * 3, (10**15, 1, 5))
LOSSES = (1e-9, 2.0, 5.0, 20.0, 700.0)
GIVEN: Mapping[str, Any] = {
    "doremi": {"data_sampling_reference_losses": dict.fromkeys(DOMAINS, 2.0)},
    "dynamic_batch_loading": {"data_sampling_target_losses": dict.fromkeys(DOMAINS, 2.0)},
    "skill_graph": {
        "data_sampling_transfer_matrix": {name: dict.fromkeys(DOMAINS, 1.0) for name in DOMAINS}
    },
}
"""What a method requires."""


def _number(rng: random.Random) -> float:
    return rng.choice(NUMBERS)


def _of_domains(rng: random.Random) -> dict[str, float]:
    return {name: _number(rng) for name in rng.sample(DOMAINS, rng.choice((0, 1, 2, 3, 3, 3)))}


def _either(rng: random.Random) -> float | dict[str, float]:
    return rng.choice((_number, _of_domains))(rng)


def _weights(rng: random.Random) -> Any:
    rule = {rng.choice(("temperature", "unimax")): _number(rng)}
    return rng.choice(([_number(rng) for _ in DOMAINS], "uniform", "natural", rule))


def _group(rng: random.Random) -> dict[str, Any]:
    members = rng.sample(DOMAINS, rng.choice((1, 2, 3)))
    return {"group": {"domains": members, rng.choice(("min", "max")): _number(rng)}}


def _objective(rng: random.Random) -> dict[str, Any]:
    whole = {"perplexity": _number(rng), "weights": _of_domains(rng)}
    return {key: whole[key] for key in rng.sample(sorted(whole), rng.choice((1, 2)))}


_PREFIX = "data_sampling_"
KEYS: dict[str, Callable[[random.Random], Any]] = {
    "train_data_weights": _weights,
    "weighted_sampler_alpha": _number,
    **{
        f"{_PREFIX}{name}": _number
        for name in (
            *("warmup_steps", "update_frequency", "smoothing_factor", "step_size", "window"),
            *("heldout_interval", "heldout_samples", "heldout_parts", "max_ratio", "exponent"),
        )
    },
    **{f"{_PREFIX}{name}": _of_domains for name in ("reference_losses", "target_losses")},
    f"{_PREFIX}transfer_matrix": lambda rng: {name: _of_domains(rng) for name in DOMAINS},
    **{f"{_PREFIX}{name}": _either for name in ("min_weight", "max_weight", "max_epochs")},
    f"{_PREFIX}groups": _group,
    f"{_PREFIX}objective": _objective,
    f"{_PREFIX}trust_region": lambda rng: {rng.choice(("kl", "total_variation")): _number(rng)},
    f"{_PREFIX}reward": lambda rng: rng.choice(("train", "heldout")),
    f"{_PREFIX}guard": lambda rng: "anchor",
    **{
        name: lambda rng: True
        for name in (
            *("mixed_batches", "mixed_minibatches", f"{_PREFIX}stratified"),
            *("batch_normalized_reward", "scale_by_reward_loss_diff", "weight_by_num_documents"),
        )
    },
}
"""The keys, and how each gets a value."""


def settings_of(rng: random.Random) -> dict[str, Any]:
    """Draws a method and up to three odd keys."""
    method = rng.choice((*METHODS, "learning_curve", "learning_curve"))
    chosen = rng.sample(sorted(KEYS), rng.choice((1, 1, 2, 3)))
    odd = {key: KEYS[key](rng) for key in chosen}
    return {f"{_PREFIX}method": method, **GIVEN.get(method, {}), **odd}


def run_cases(cases: int, seed: int) -> Iterator[str]:
    """Runs cases; yields a report of each that is neither refused nor usable."""
    for number in range(cases):
        rng = random.Random(f"mixing {seed * _MAX_CASES + number}")
        settings, sizes = settings_of(rng), rng.choice(SIZES)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", RuntimeWarning)
                _use(resolve(NeoXArgs.from_dict({**MODEL, **settings})), sizes, rng)
        except UserError as error:
            problem = "a message of several lines" if "\n" in error.args[0] else None
        except Exception as error:
            problem = f"{type(error).__name__}: {str(error)[:200]}"
        else:
            problem = None
        if problem:
            yield f"case {number}: {problem}\n  {settings}, sizes {sizes}"


def _use(config: RunConfig, sizes: tuple[int, ...], rng: random.Random) -> None:
    """Builds the mixture, and draws and observes a few steps."""
    known = [DomainSize(name, 2 * size, size) for name, size in zip(DOMAINS, sizes, strict=True)]
    weights = train_weights(config, known)
    mixture = build_controller(config, DOMAINS, weights, samples_per_epoch=sizes)
    learns_from_training = (
        config.mixing.reward == "train" and METHODS[config.mixing.method].signal != "held_out"
    )
    for step in range(1, STEPS + 1):
        drawn = mixture.draw(step, BATCH, config.mixing.run_length).counts(len(DOMAINS))
        losses = np.array([rng.choice(LOSSES) for _ in DOMAINS])
        tokens = np.where(drawn > 0, rng.choice((0.0, 64.0)), 0.0)
        if learns_from_training:
            mixture.observe(step, Signal.from_means(losses, tokens))
        total = mixture.weights.sum()
        assert abs(total - 1.0) < 1e-9, f"weights {mixture.weights.tolist()}"
        assert mixture.weights.min() >= 0, f"weights {mixture.weights.tolist()}"
