"""How an optimizer step and an evaluation run on an engine; no other module calls its methods."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor

from megatron.checkpoint.fragments import loss_scaler_state
from megatron.data.batch import Batch
from megatron.engine.domain_sums import DomainLossRecorder, DomainSums, all_reduce_sum
from megatron.engine.gradient_norm import GradientClipper
from megatron.model.gpt2_model import GPT2Model
from megatron.model.parameters import spec_of
from megatron.mpu import Topology
from megatron.runtime import accelerator
from megatron.runtime.process_life import stop_requested

__all__ = [
    "DataParallelRunner",
    "Evaluator",
    "InferenceRunner",
    "PipelineRunner",
    "StepResult",
    "StepRunner",
    "any_rank_asked_to_stop",
    "count_parameters",
    "forward_and_record",
]


@dataclass(frozen=True)
class StepResult:
    """The result of an optimizer step. Tensors stay on the device until they are read."""

    sums: DomainSums[Tensor]
    """Sums of this rank, not reduced yet."""
    grad_norm: Tensor | float | None
    """Global gradient norm before clipping."""
    skipped: bool
    """Whether an fp16 overflow made the optimizer skip the step."""


class Evaluator(Protocol):
    """The interface for evaluation, which every runner has."""

    device: torch.device
    topology: Topology

    def evaluate(self, batches: Iterable[Batch], recorder: DomainLossRecorder) -> None:
        """Records the losses of ``batches``, unless another rank records the same losses.

        Every rank must pass the same number of batches, since forward passes may communicate.
        """


class StepRunner(ABC):
    """One optimizer step on a DeepSpeed engine, whatever its parallelism.

    Args:
        engine: DeepSpeed's engine with model and optimizer.
        topology: The grid of ranks, and this rank's place in it.
        clipper: Clips gradients if DeepSpeed does not; otherwise None.
        num_domains: Number of domains K.
        has_masks: Whether the number of tokens that count may differ between micro-batches.
    """

    def __init__(
        self,
        engine: deepspeed.DeepSpeedEngine,
        topology: Topology,
        clipper: GradientClipper | None,
        *,
        num_domains: int,
        has_masks: bool = False,
    ):
        self.engine = engine
        self.topology = topology
        self.clipper = clipper
        self.num_domains = num_domains
        self.has_masks = has_masks
        self.device = accelerator.device()

    @abstractmethod
    def _run(self, batches: Iterator[Batch], recorder: DomainLossRecorder) -> None:
        """Forward and backward passes of all micro-batches, and the optimizer step."""

    @abstractmethod
    def _forward_only(self, batches: Iterator[Batch], recorder: DomainLossRecorder) -> None:
        """Forward passes of all batches."""

    def set_learning_rate(self, learning_rate: float) -> None:
        """Sets the rate of the next optimizer step."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate

    def train_step(self, batches: Iterable[Batch]) -> StepResult:
        """Runs all micro-batches of one optimizer step."""
        skipped_before = self.engine.skipped_steps
        if self.has_masks:
            batches = list(batches)  # all at once: the mean over their tokens needs their number
            self._share_mean_tokens(batches)
        recorder = DomainLossRecorder(self.num_domains, self.device)
        self._run(iter(batches), recorder)
        norm = self.clipper.norm if self.clipper else self.engine.get_global_grad_norm()
        return StepResult(
            sums=recorder.sums(),
            grad_norm=norm,
            skipped=self.engine.skipped_steps > skipped_before,
        )

    def evaluate(self, batches: Iterable[Batch], recorder: DomainLossRecorder) -> None:
        """As in `Evaluator`; afterwards the model is in training mode again."""
        self.engine.eval()
        try:
            with torch.no_grad():
                self._forward_only(iter(batches), recorder)
        finally:
            self.engine.train()

    def _share_mean_tokens(self, batches: Sequence[Batch]) -> None:
        """Tells the output layer how many tokens per micro-batch count, on average over all ranks.

        All ranks of a replica count the same samples, which does not change the mean.
        """
        tokens = sum(float(batch.loss_mask.sum()) for batch in batches)
        counts = torch.tensor([tokens, len(batches)], dtype=torch.float64)
        tokens_of_all, batches_of_all = all_reduce_sum(counts.to(self.device, non_blocking=True))
        output = self.engine.module.output_layer
        if output is not None:
            output.mean_tokens = (tokens_of_all.clamp_min(1.0) / batches_of_all).float()

    @property
    def loss_scale(self) -> float | None:
        """Current fp16 loss scale; None in other precisions."""
        if not self.engine.fp16_enabled():
            return None
        # the engine's own method returns the configured scale, which is 0 for a dynamic scale
        return float(self.engine.optimizer.loss_scaler.loss_scale)

    def loss_scaler_state(self) -> dict[str, float]:
        """Numbers of the dynamic fp16 loss scale, for the checkpoint."""
        return loss_scaler_state(self.engine)


class DataParallelRunner(StepRunner):
    """Gradient accumulation on the plain engine; the model may be tensor-parallel."""

    def _run(self, batches: Iterator[Batch], recorder: DomainLossRecorder) -> None:
        for batch in batches:
            loss = forward_and_record(self.engine, batch, recorder, runner=self)
            self.engine.backward(loss)
            self.engine.step()

    def _forward_only(self, batches: Iterator[Batch], recorder: DomainLossRecorder) -> None:
        for batch in batches:
            forward_and_record(self.engine, batch, recorder, runner=self)


class PipelineRunner(StepRunner):
    """Micro-batches in flight between stages, on DeepSpeed's pipeline engine."""

    def _run(self, batches: Iterator[Batch], recorder: DomainLossRecorder) -> None:
        self.engine.train_batch(data_iter=map(_stage_inputs, batches))
        self._record(recorder)

    def _forward_only(self, batches: Iterator[Batch], recorder: DomainLossRecorder) -> None:
        while group := list(itertools.islice(batches, self.engine.micro_batches)):
            self.engine.eval_batch(
                data_iter=map(_stage_inputs, group),
                compute_loss=True,
                reduce_output=None,
                bcast_loss=False,
                num_micro_batches=len(group),
            )
            self._record(recorder)

    def _record(self, recorder: DomainLossRecorder) -> None:
        """Records the losses of the micro-batches that have run; only the last stage has them."""
        for losses in self.engine.module.take_token_losses():
            if self.topology.model_rank == 0:
                recorder.record(*losses)


class InferenceRunner:
    """Evaluates a model without an engine."""

    def __init__(self, model: GPT2Model, topology: Topology):
        self.model = model
        self.topology = topology
        self.device = accelerator.device()

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch], recorder: DomainLossRecorder) -> None:
        """See `Evaluator`."""
        for batch in batches:
            forward_and_record(self.model, batch, recorder, runner=self)


def forward_and_record(
    model: Callable[..., tuple[Tensor, Tensor]],
    batch: Batch,
    recorder: DomainLossRecorder,
    *,
    runner: Evaluator,
) -> Tensor:
    """Mean loss of a micro-batch; one rank of a tensor group records the losses of its tokens."""
    # from ordinary memory a copy would wait for the micro-batches that the device still computes
    moved = batch.map(accelerator.pinned).to(runner.device, non_blocking=True)
    offsets = () if moved.document_offsets is None else (moved.document_offsets,)
    loss, nll = model(moved.tokens, moved.labels, moved.loss_mask, *offsets)
    if runner.topology.model_rank == 0:
        recorder.record(nll, moved.loss_mask, moved.domain_ids)
    return loss


def _stage_inputs(batch: Batch) -> tuple[Any, tuple[Tensor, Tensor, Tensor]]:
    """The input of the first stage, and the targets of the last stage."""
    targets = batch.labels, batch.loss_mask, batch.domain_ids
    if batch.document_offsets is None:
        return batch.tokens, targets
    return (batch.tokens, batch.document_offsets), targets


def count_parameters(runner: StepRunner) -> int:
    """Number of logical parameters of the whole model, over all stages and shards."""
    topology = runner.topology
    count = sum(
        math.prod(spec_of(p).logical_shape)
        for p in runner.engine.module.parameters()
        if not getattr(p, "ds_pipe_replicated", False)
    )
    is_counted = topology.model_rank == 0 and topology.data_rank == 0
    total = torch.tensor(float(count if is_counted else 0), dtype=torch.float64)
    return int(all_reduce_sum(total.to(runner.device)))


def any_rank_asked_to_stop(device: torch.device) -> bool:
    """Whether any rank was asked to stop; all ranks call it and get the same answer."""
    if dist.get_world_size() == 1:
        return stop_requested()
    return bool(all_reduce_sum(torch.tensor(float(stop_requested()), device=device)))
