"""AdamW and SGD written out, for tests: one list of tensors, one loop, no groups and no engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Weights = dict[str, Tensor]


@dataclass
class Step:
    """What a step saw and left, by parameter name where there are several."""

    losses: Tensor
    """Of each token of the whole batch, (b, s)."""
    norm: float
    """Of all gradients, before clipping."""
    gradients: Weights
    """After clipping."""
    weights: Weights = field(default_factory=dict)
    moments: dict[str, Weights] = field(default_factory=dict)


@dataclass
class PlainTraining:
    """Settings of a run, and the weights that it changes."""

    weights: Weights
    losses_of: Callable[[Weights, int], tuple[Tensor, Tensor]]
    """What a step, counted from 1, trains on; and the losses of its tokens."""
    rates: Sequence[float]
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    limit: float = 0.0
    """Largest norm; 0 clips nothing."""
    momentum: float | None = None
    """Of SGD; None is AdamW."""
    nesterov: bool = False

    def run(self) -> list[Step]:
        """All steps."""
        self.weights = {name: w.clone().requires_grad_() for name, w in self.weights.items()}
        first = {name: torch.zeros_like(w) for name, w in self.weights.items()}
        second = {name: torch.zeros_like(w) for name, w in self.weights.items()}
        steps = []
        for number, rate in enumerate(self.rates, start=1):
            step = self._gradients(number)
            for name, weight in self.weights.items():
                self._change(name, weight, step.gradients[name], first, second, number, rate)
            step.weights = {name: w.detach().clone() for name, w in self.weights.items()}
            step.moments = {
                "momentum_buffer": {name: m.clone() for name, m in first.items()},
                "exp_avg": {name: m.clone() for name, m in first.items()},
                "exp_avg_sq": {name: m.clone() for name, m in second.items()},
            }
            steps.append(step)
        return steps

    def _gradients(self, number: int) -> Step:
        loss, losses = self.losses_of(self.weights, number)
        gradients = dict(
            zip(self.weights, torch.autograd.grad(loss, list(self.weights.values())), strict=True)
        )
        norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients.values()))
        share = self.limit / (norm + 1e-6) if 0 < self.limit < norm else 1.0
        return Step(losses.detach(), norm, {name: g * share for name, g in gradients.items()})

    def _change(
        self,
        name: str,
        weight: Tensor,
        gradient: Tensor,
        first: Weights,
        second: Weights,
        number: int,
        rate: float,
    ) -> None:
        decay = self.weight_decay if is_decayed(name) else 0.0
        with torch.no_grad():
            if self.momentum is not None:  # decay is part of the gradient here
                gradient = gradient + decay * weight
                first[name] = self.momentum * first[name] + gradient
                ahead = gradient + self.momentum * first[name]
                weight -= rate * (ahead if self.nesterov else first[name])
                return
            one, two = self.betas
            first[name] = one * first[name] + (1 - one) * gradient
            second[name] = two * second[name] + (1 - two) * gradient**2
            mean, square = first[name] / (1 - one**number), second[name] / (1 - two**number)
            weight -= rate * decay * weight
            weight -= rate * mean / (square.sqrt() + self.eps)


def is_decayed(name: str) -> bool:
    """GPT-NeoX's rule: neither biases nor anything of a norm."""
    return not name.endswith(".bias") and "norm" not in name
