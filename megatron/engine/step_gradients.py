"""The gradient of an optimizer step, parameter by parameter, on every layout.

A hook of torch's optimizer sees it after all reductions, as the pieces of the flattened tensors
that this rank owns. Nothing is gathered, and nobody waits for the device.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from megatron.checkpoint.fragments import optimizer_tensors
from megatron.checkpoint.snapshot import owned_fragments
from megatron.engine.runners import StepRunner

__all__ = ["GradientReader", "read_gradients"]

_EPSILON = 1e-6
"""What DeepSpeed and `GradientClipper` add to the norm or to the quotient before they clip."""


class GradientReader(Protocol):
    """Reads the gradients of the steps that it wants."""

    wants_gradients: bool
    """Whether `take` is called in the next optimizer step."""

    def take(self, name: str, gradient: Tensor, scale: Tensor) -> None:
        """Takes a piece of a parameter's gradient.

        Args:
            name: Name of the parameter.
            gradient: What this rank owns of it, flattened, averaged over the global batch and
                clipped; valid during the call. All ranks together get each element once.
            scale: Factor that undoes the clipping, shape ().
        """


def read_gradients(runner: StepRunner, readers: list[GradientReader], *, clip_limit: float) -> None:
    """Lets ``readers`` see the gradients of each optimizer step from now on.

    Args:
        runner: Has the engine, whose state has been loaded.
        readers: Each is asked before a step whether it wants the gradients.
        clip_limit: ``gradient_clipping`` of the run; 0 clips nothing.
    """
    engine = runner.engine
    base = engine.optimizer.optimizer if engine.zero_optimization_stage() else engine.optimizer
    pieces = _pieces(runner)

    def undo_clipping(device: torch.device) -> Tensor:
        norm = runner.clipper.norm if runner.clipper else engine.optimizer._global_grad_norm
        if clip_limit <= 0 or norm is None:
            return torch.ones((), dtype=torch.float64, device=device)
        norm = torch.as_tensor(norm, dtype=torch.float64, device=device)
        return ((norm + _EPSILON) / clip_limit).clamp_min(1.0)

    def before_step(optimizer: torch.optim.Optimizer, *_: object) -> None:
        active = [reader for reader in readers if reader.wants_gradients]
        if not active:
            return
        for group in optimizer.param_groups:  # ZeRO steps one group after the other
            for tensor in group["params"]:
                if tensor.grad is None or id(tensor) not in pieces:
                    continue
                gradient, scale = tensor.grad.detach().flatten(), undo_clipping(tensor.grad.device)
                for name, first, length in pieces[id(tensor)]:
                    for reader in active:
                        reader.take(name, gradient[first : first + length], scale)

    base.register_step_pre_hook(before_step)


def _pieces(runner: StepRunner) -> dict[int, list[tuple[str, int, int]]]:
    """Tensor of the optimizer, by id -> (parameter, first element, length) of what is in it.

    A fragment is a view of one of these tensors, so its place follows from the memory.
    """
    tensors = optimizer_tensors(runner.engine)
    owners = {tensor.untyped_storage().data_ptr(): tensor for tensor in tensors if tensor.numel()}
    found: dict[int, list[tuple[str, int, int]]] = {}
    for fragment in owned_fragments(runner.engine, runner.topology):
        values = fragment.values["fp32"]
        owner = owners.get(values.untyped_storage().data_ptr())
        if owner is None:  # not trained
            continue
        first = int(values.storage_offset() - owner.storage_offset())
        found.setdefault(id(owner), []).append((fragment.name, first, fragment.length))
    return found
