"""Lion (Chen et al. 2023, arXiv:2302.06675): steps of equal size in all elements, one moment."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Lion"]


class Lion(torch.optim.Optimizer):
    """Lion with decoupled weight decay, in plain torch, so that nothing has to be compiled.

    With the gradient g and the moment m of each parameter p:

        p = (1 - lr weight_decay) p - lr sign(beta1 m + (1 - beta1) g)
        m = beta2 m + (1 - beta2) g

    Args:
        params: Parameters or groups of them.
        lr: Learning rate; about a tenth of Adam's.
        betas: beta1 and beta2.
        weight_decay: Decay of the weights per unit of learning rate.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes a step; the moment is called ``exp_avg`` as in GPT-NeoX and DeepSpeed."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._step_group(group, parameters)
        return loss

    def _step_group(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        rate, (beta1, beta2) = group["lr"], group["betas"]
        for parameter in parameters:
            if "exp_avg" not in self.state[parameter]:
                self.state[parameter]["exp_avg"] = torch.zeros_like(parameter)
        gradients = [p.grad.to(p.dtype) for p in parameters if p.grad is not None]
        moments = [self.state[parameter]["exp_avg"] for parameter in parameters]
        directions = torch._foreach_lerp(gradients, moments, beta1)
        torch._foreach_sign_(directions)
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1.0 - rate * group["weight_decay"])
        torch._foreach_add_(parameters, directions, alpha=-rate)
        torch._foreach_lerp_(moments, gradients, 1.0 - beta2)
