"""How one optimizer step and one evaluation run on an engine: the only callers of its methods."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron import accelerator
from megatron.data.batch import Batch
from megatron.engine_state import loss_scaler_state
from megatron.model.gpt2_model import GPT2Model
from megatron.model.loss import DomainLossRecorder

__all__ = ["DataParallelRunner", "Evaluator", "InferenceRunner", "StepResult", "all_reduce_sum"]


@dataclass(frozen=True)
class StepResult:
    """What an optimizer step left behind. Tensors stay on the device until somebody reads them."""

    domain_sums: Tensor
    """Packed per-domain sums of this rank, see `DomainLossRecorder`; not yet reduced."""
    grad_norm: Tensor | float | None
    """Global gradient norm before clipping."""
    skipped: bool
    """Whether an fp16 overflow made the optimizer skip the step."""


class DataParallelRunner:
    """Gradient accumulation on DeepSpeed's plain engine.

    Args:
        engine: The engine; its gradient clipping must be off where `clips_here` is true.
        recorder: Filled by the model's forward passes.
        gradient_clipping: Largest global norm of the gradient; 0 does not clip.
    """

    def __init__(
        self,
        engine: deepspeed.DeepSpeedEngine,
        recorder: DomainLossRecorder,
        *,
        gradient_clipping: float,
    ):
        self.engine = engine
        self.recorder = recorder
        self.gradient_clipping = gradient_clipping
        self.clips_here = clips_in_runner(engine)
        self.device = accelerator.device()

    def set_learning_rate(self, learning_rate: float) -> None:
        """Sets the rate of the next optimizer step."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate

    def train_step(self, batches: Iterable[Batch]) -> StepResult:
        """Runs all micro-batches of one optimizer step."""
        engine = self.engine
        grad_norm: Tensor | float | None = None
        skipped_before = engine.skipped_steps
        for batch in batches:
            loss = engine(*_inputs(batch, self.device))
            engine.backward(loss)
            if self.clips_here and engine.is_gradient_accumulation_boundary():
                grad_norm = self._clip()
            engine.step()
        return StepResult(
            domain_sums=self.recorder.drain(),
            grad_norm=grad_norm if self.clips_here else engine.get_global_grad_norm(),
            skipped=engine.skipped_steps > skipped_before,
        )

    def _clip(self) -> Tensor:
        """Clips the reduced gradients here, so that their global norm is known; returns it."""
        gradients = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.gradient_clipping > 0:
            scale = (self.gradient_clipping / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, scale)
        return norm

    @property
    def loss_scale(self) -> float | None:
        """Current fp16 loss scale; None in other precisions."""
        return float(self.engine.loss_scale()) if self.engine.fp16_enabled() else None

    def loss_scaler_state(self) -> dict[str, float]:
        """Numbers of the dynamic fp16 loss scale, for the checkpoint."""
        return loss_scaler_state(self.engine)

    def evaluate(self, batches: Iterable[Batch], *, num_domains: int) -> Tensor:
        """See `sum_losses`; the model is back in training mode afterwards."""
        self.engine.eval()
        try:
            return sum_losses(self.engine, self.engine.module, batches, num_domains=num_domains)
        finally:
            self.engine.train()


class InferenceRunner:
    """Evaluates a bare model, without an engine."""

    def __init__(self, model: GPT2Model):
        self.model = model

    def evaluate(self, batches: Iterable[Batch], *, num_domains: int) -> Tensor:
        """See `sum_losses`."""
        return sum_losses(self.model, self.model, batches, num_domains=num_domains)


class Evaluator(Protocol):
    """What can evaluate: both runners."""

    def evaluate(self, batches: Iterable[Batch], *, num_domains: int) -> Tensor:
        """See `sum_losses`."""


@torch.no_grad()
def sum_losses(
    forward: Callable[..., Tensor],
    model: GPT2Model,
    batches: Iterable[Batch],
    *,
    num_domains: int,
) -> Tensor:
    """Packed per-domain sums over ``batches`` (see `DomainLossRecorder`), over all ranks.

    Every rank must bring the same number of batches: under ZeRO 3 each forward pass gathers
    parameters on all ranks together.

    Args:
        forward: Runs the model: the engine, or the model itself.
        model: Its recorder is replaced for the time being.
        batches: Of this rank.
        num_domains: ``domain_ids`` are below this.
    """
    device = accelerator.device()
    kept, model.recorder = model.recorder, DomainLossRecorder(num_domains, device)
    try:
        for batch in batches:
            forward(*_inputs(batch, device))
        return all_reduce_sum(model.recorder.drain())
    finally:
        model.recorder = kept


def _inputs(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    moved = batch.to(device, non_blocking=True)
    return moved.tokens, moved.labels, moved.loss_mask, moved.domain_ids


def clips_in_runner(engine: deepspeed.DeepSpeedEngine) -> bool:
    """True for fp32 without ZeRO, where DeepSpeed clips but does not tell the norm."""
    return engine.zero_optimization_stage() == 0 and not engine.fp16_enabled()


def all_reduce_sum(sums: Tensor) -> Tensor:
    """Sums over all ranks, in place; a no-op for one process."""
    if dist.get_world_size() > 1:
        dist.all_reduce(sums)
    return sums
