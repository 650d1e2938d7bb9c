"""The program's own ten steps, for tests: configuration, engine, runner and loop as in training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megatron.checkpoint.fragments import iterate_fragments
from megatron.data.batch import Batch
from megatron.engine.build import build_runner
from megatron.engine.learning_rates import learning_rate_schedule
from megatron.engine.optimizers import moment_names
from megatron.engine.state import TrainState
from megatron.hooks.base import Hook, StepReport
from megatron.mpu.initialize import make_topology
from megatron.neox_arguments import NeoXArgs, resolve
from megatron.training import train
from odm import MixtureController, MixtureSchedule

VOCAB = 61
STEPS = 10
# warm-up over 3 steps, then a cosine over 7 from 0.03 to 0.006; the first step has applied none
RATES = (
    *(0.01, 0.01, 0.02, 0.03, 0.0288116264),
    *(0.0254818776, 0.0206702512, 0.0153297488, 0.0105181224, 0.0071883736),
)
"""Of `SETTINGS`, worked out by hand."""
MICRO_BATCH, MICRO_BATCHES, LENGTH = 2, 2, 12

SETTINGS: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "seq_length": LENGTH,
    "max_position_embeddings": LENGTH,
    "make_vocab_size_divisible_by": 64,
    "train_micro_batch_size_per_gpu": MICRO_BATCH,
    "gradient_accumulation_steps": MICRO_BATCHES,
    "train_iters": STEPS,
    "precision": "fp32",
    "zero_optimization": {"stage": 0},
    "optimizer": {"type": "Adam", "params": {"lr": 0.03, "betas": [0.8, 0.9], "eps": 1e-3}},
    "weight_decay": 0.2,
    "gradient_clipping": 0.8,
    "lr_decay_style": "cosine",
    "min_lr": 0.006,
    "warmup": 0.3,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "data_sampling_method": "static",
}


@dataclass
class OurStep:
    """What the program reports of a step and leaves behind it."""

    report: StepReport
    gradients: dict[str, Tensor]
    """After clipping; empty with ZeRO, which holds them elsewhere."""
    values: dict[str, dict[str, Tensor]]
    """Weights (``fp32``) and moments, by kind and parameter, without vocabulary padding."""


def samples(step: int, length: int = LENGTH) -> np.ndarray:
    """(b, s + 1) tokens of a step's whole batch."""
    shape = (MICRO_BATCH * MICRO_BATCHES, length + 1)
    return np.random.default_rng(step).integers(0, VOCAB, shape)


class RandomText:
    """Hands the engine the samples of a step, as micro-batches; with the mixture of the run."""

    samples_per_epoch = 100

    def __init__(self, mixture: MixtureController, length: int) -> None:
        self.mixture = mixture
        self.seq_length = length
        self.global_batch_size = MICRO_BATCH * MICRO_BATCHES

    @property
    def samples_by_domain(self) -> dict[str, int]:
        return {"web": 100, "code": 100}

    def batches(self, draw: Any) -> Iterator[Batch]:
        whole = torch.from_numpy(samples(draw.step, self.seq_length))
        domains = torch.from_numpy(draw.domains.astype(np.int64))
        for first in range(0, self.global_batch_size, MICRO_BATCH):
            rows = slice(first, first + MICRO_BATCH)
            tokens, labels = whole[rows, :-1].contiguous(), whole[rows, 1:].contiguous()
            yield Batch(tokens, labels, torch.ones(tokens.shape), domains[rows])


class Recording(Hook):
    """Keeps each step; gradients from a hook that runs behind the clipping one."""

    def __init__(self, runner: Any, config: Any) -> None:
        self.runner, self.moments = runner, moment_names(config)
        self.steps: list[OurStep] = []
        self.gradients: dict[str, Tensor] = {}
        if isinstance(runner.engine.optimizer, torch.optim.Optimizer):  # no ZeRO around it
            runner.engine.optimizer.register_step_pre_hook(self._keep_gradients)

    def _keep_gradients(self, *_: Any) -> None:
        parameters = self.runner.engine.module.named_parameters()
        self.gradients = {name: logical(p.grad.detach(), p).clone() for name, p in parameters}

    def after_step(self, state: TrainState, report: StepReport) -> None:
        self.steps.append(OurStep(report, self.gradients, values(self.runner, self.moments)))


def logical(tensor: Tensor, parameter: Any) -> Tensor:
    """Without the rows that pad the vocabulary."""
    return tensor[: parameter.spec.logical_shape[0]]


def values(runner: Any, moments: tuple[str, ...]) -> dict[str, dict[str, Tensor]]:
    """Weights and moments of the engine."""
    found: dict[str, dict[str, Tensor]] = {}
    for fragment in iterate_fragments(runner.engine, moments, dp_rank=0, dp_size=1):
        parameter, shape = fragment.parameter, fragment.parameter.spec.shard_shape
        for kind, flat in fragment.values.items():
            whole = flat.detach().clone().view(shape)
            found.setdefault(kind, {})[fragment.name] = logical(whole, parameter)
    return found


def scatter_values(module: Any) -> None:
    """Moves norms and biases away from 1 and 0, where a forgotten one would not show."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter += 0.3 * noise.to(parameter.dtype)


def configuration(**changes: Any) -> Any:
    """`SETTINGS` with changes, resolved."""
    return resolve(NeoXArgs.from_dict({**SETTINGS, **changes}), world_size=1)


def make_runner(monkeypatch: Any, **changes: Any) -> tuple[Any, Any]:
    """(runner, configuration) of a run of one rank."""
    loaded, config = load_runner(monkeypatch, **changes)
    return loaded.runner, config


def load_runner(monkeypatch: Any, **changes: Any) -> tuple[Any, Any]:
    """(what `build_runner` returns, configuration) of a run of one rank."""
    from megatron.engine import build as building

    config = configuration(**changes)
    build = building.build_model

    def build_and_scatter(*args: Any, **keywords: Any) -> Any:
        model = build(*args, **keywords)
        scatter_values(model)
        return model

    monkeypatch.setattr(building, "build_model", build_and_scatter)
    tokenizer: Any = SimpleNamespace(vocab_size=VOCAB)
    loaded = build_runner(
        config, tokenizer, make_topology(config), num_domains=2, say=lambda text: None
    )
    return loaded, config


def random_text(config: Any, method: str = "static") -> Any:
    """The data of a run, and their mixture: two domains."""
    mixture = MixtureController(("web", "code"), method, MixtureSchedule(1, 2))
    return RandomText(mixture, config.data.seq_length)


def run_steps(
    runner: Any,
    config: Any,
    *hooks: Hook,
    last_step: int = STEPS,
    source: Any = None,
    state: TrainState | None = None,
) -> list[OurStep]:
    """Trains by the only loop of the project; ``hooks`` run behind the recording one."""
    source = source or random_text(config)
    recording = Recording(runner, config)
    train(
        runner,
        source,
        source.mixture,
        [recording, *hooks],
        state or TrainState(),
        last_step=last_step,
        learning_rate_of=learning_rate_schedule(config),
    )
    return recording.steps
