"""The global gradient norm for fp32 without ZeRO, where DeepSpeed computes none or a wrong one.

DeepSpeed's plain engine then clips without returning the norm, and its pipeline engine clips each
stage by the norm of that stage alone.
"""

from __future__ import annotations

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron.model.parameters import spec_of
from megatron.mpu import Topology

__all__ = ["GradientClipper", "clips_itself"]


def clips_itself(*, zero_stage: int, precision: str) -> bool:
    """Whether the gradients of such a run are clipped by `GradientClipper`."""
    return zero_stage == 0 and precision == "fp32"


_PIECE = 1024


class GradientClipper:
    """Clips before each optimizer step, after all gradients are reduced.

    Args:
        engine: The engine; its optimizer is torch's own, and its ``gradient_clipping`` must be 0.
        topology: The grid of ranks, and this rank's place in it.
        limit: Largest global norm; 0 measures without clipping.
    """

    def __init__(self, engine: deepspeed.DeepSpeedEngine, topology: Topology, limit: float):
        self.norm: Tensor | None = None
        self._module: nn.Module = engine.module
        self._topology = topology
        self._limit = limit
        engine.optimizer.register_step_pre_hook(self._before_step)

    def _before_step(self, *args: object) -> None:
        gradients = [p.grad for p in self._module.parameters() if p.grad is not None]
        self.norm = self._global_norm(gradients)
        if self._limit > 0:
            scale = (self._limit / (self.norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, scale)

    def _global_norm(self, gradients: list[Tensor]) -> Tensor:
        counted = [
            p.grad for p in self._module.parameters() if p.grad is not None and self._counts(p)
        ]
        square = torch.zeros((), dtype=torch.float64, device=gradients[0].device)
        for gradient in counted:
            square += sum_of_squares(gradient)
        if self._topology.replica_group is not None:
            dist.all_reduce(square, group=self._topology.replica_group)
        return square.sqrt().float()

    def _counts(self, parameter: nn.Parameter) -> bool:
        """Replicated parameters and tied copies are counted on one rank of a replica."""
        if getattr(parameter, "ds_pipe_replicated", False):
            return False
        return spec_of(parameter).tp_dim is not None or self._topology.model_rank == 0


def sum_of_squares(tensor: Tensor) -> Tensor:
    """Sum of squares, float64, exact to float32 rounding however large the tensor is.

    On a CPU, torch sums a whole tensor in float32, which loses five digits of the norm of an
    embedding matrix. So pieces are summed in float32, and their sums in float64.
    """
    flat = tensor.detach().flatten()
    whole = flat.numel() // _PIECE * _PIECE
    norms = torch.linalg.vector_norm(flat[:whole].view(-1, _PIECE), dim=1)
    rest = torch.linalg.vector_norm(flat[whole:])
    return norms.double().square().sum() + rest.double().square()
