"""Optimizers and their parameter groups."""

from __future__ import annotations

import torch
from torch import nn

from megatron.engine.lion import Lion
from megatron.model.parameters import spec_of
from megatron.neox_arguments import ConfigError, RunConfig
from megatron.neox_arguments.deepspeed_json import missing_optimizer_problem
from megatron.runtime import accelerator

__all__ = ["build_optimizer", "moment_names", "parameter_groups"]


def moment_names(config: RunConfig) -> tuple[str, ...]:
    """Per-parameter state tensors of the optimizer that checkpoints have, as torch names them."""
    if config.optimizer.type == "sgd":
        return ("momentum_buffer",) if config.optimizer.options.get("momentum") else ()
    if config.optimizer.type == "lion":
        return ("exp_avg",)
    if config.optimizer.use_bnb_optimizer:
        return ()  # 8-bit codes, which mean nothing without the tables of their blocks
    return ("exp_avg", "exp_avg_sq")


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Weight decay for matrices, not for biases and norms; empty groups are left out.

    Parameters that are not trained are in no group.
    """
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for parameter in filter(lambda parameter: parameter.requires_grad, module.parameters()):
        (decayed if spec_of(parameter).has_weight_decay else kept).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(module: nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    """Builds the optimizer that ``optimizer.type`` names, on torch's fused kernels.

    Raises:
        ConfigError: If bitsandbytes is asked for and cannot be used here.
    """
    groups = parameter_groups(module, config.optimizer.weight_decay)
    if config.optimizer.type == "sgd":
        return torch.optim.SGD(
            groups, lr=config.optimizer.learning_rate, fused=True, **config.optimizer.options
        )
    if config.optimizer.type == "lion":
        rate, betas = config.optimizer.learning_rate, config.optimizer.betas
        return Lion(groups, lr=rate, betas=betas)
    if config.optimizer.use_bnb_optimizer:
        return _eight_bit_adam(groups, config)
    return torch.optim.AdamW(
        groups,
        lr=config.optimizer.learning_rate,
        betas=config.optimizer.betas,
        eps=config.optimizer.eps,
        fused=True,
    )


def _eight_bit_adam(groups: list[dict], config: RunConfig) -> torch.optim.Optimizer:
    """AdamW of bitsandbytes, which keeps moments in 8 bits."""
    if problem := missing_optimizer_problem(config):
        raise ConfigError(problem)
    if accelerator.is_cpu():
        raise ConfigError("use_bnb_optimizer: bitsandbytes needs a GPU; remove the key")
    from bitsandbytes.optim import AdamW8bit  # type: ignore[import-not-found]

    return AdamW8bit(
        groups,
        lr=config.optimizer.learning_rate,
        betas=config.optimizer.betas,
        eps=config.optimizer.eps,
    )
