"""A training step on torch's ``meta`` device, where tensors have shapes and no values.

Whatever reads a value there raises, as it would make a GPU's step wait. The modules are those of a
run: `GPT2Model`, its output layer, `DomainLossRecorder`, `GradientClipper` and the optimizer of
`build_optimizer`. DeepSpeed's engine cannot run on ``meta``. What it does between them in half
precision on one rank is written here as `_EngineArithmetic`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, Protocol, cast
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from megatron.data.batch import Batch, make_batch
from megatron.engine.domain_sums import DomainLossRecorder, DomainSums
from megatron.engine.gradient_norm import GradientClipper
from megatron.engine.optimizers import build_optimizer
from megatron.engine.runners import forward_and_record
from megatron.model.gpt2_model import GPT2Model
from megatron.model.parameters import DTYPES
from megatron.model.soft_prompt import freeze_all_but_prompt
from megatron.mpu.tensor_parallel import SINGLE, TensorParallel
from megatron.neox_arguments import RunConfig
from megatron.sizing.model_shape import model_shape

__all__ = ["MetaStep", "Roles", "meta_batch", "meta_kernels", "zipf_batch"]

META = torch.device("meta")


class Roles(Protocol):
    """Names what the operations inside a context belong to."""

    def __call__(self, name: str, /) -> AbstractContextManager[Any]: ...


def no_roles(name: str) -> AbstractContextManager[Any]:
    """Names nothing."""
    return nullcontext()


@contextmanager
def meta_kernels() -> Iterator[None]:
    """Lets fused optimizers and ``flex_attention``, which know their devices, run on ``meta``."""
    import torch.nn.attention.flex_attention as flex
    import torch.optim.optimizer as optimizers

    from megatron.model import flexible_attention

    with ExitStack() as stack:
        patch = stack.enter_context
        patch(
            mock.patch.object(
                optimizers, "_get_fused_kernels_supported_devices", return_value=["meta"]
            )
        )
        patch(mock.patch.object(flex, "_validate_device"))
        patch(mock.patch.object(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True))
        patch(mock.patch.object(flexible_attention, "_compiled", lambda function: function))
        # the only kernel of ours that torch does not know on meta; it writes in place
        patch(mock.patch.object(torch, "_fused_sgd_"))
        yield


def zipf_batch(
    config: RunConfig, *, vocab_size: int, num_domains: int, seed: int = 1
) -> tuple[Batch, ...]:
    """Micro-batches of a step on the CPU, as `MixedBatches` makes them, of random tokens."""
    generator = np.random.default_rng(seed)
    rows, length = config.batch.micro_batch_size, config.data.seq_length
    made = []
    for _ in range(config.batch.gradient_accumulation_steps):
        tokens = (generator.pareto(1.0, (rows, length + 1)) * 10).astype(np.int64) % vocab_size
        domains = generator.integers(0, num_domains, rows)
        made.append(
            make_batch(
                tokens,
                domains,
                eod_token=0,
                eod_mask_loss=config.data.eod_mask_loss,
                tells_documents=config.model.tells_documents,
                vocab_size=vocab_size,
            )
        )
    return tuple(made)


def meta_batch(config: RunConfig) -> Batch:
    """A micro-batch that is on ``meta`` already, however large it is."""
    rows, length = config.batch.micro_batch_size, config.data.seq_length
    tokens = torch.empty(rows, length, dtype=torch.int64, device=META)
    return Batch(
        tokens=tokens,
        labels=torch.empty_like(tokens),
        loss_mask=torch.empty(rows, length, device=META),
        domain_ids=torch.empty(rows, dtype=torch.int64, device=META),
        document_offsets=torch.empty_like(tokens) if config.model.tells_documents else None,
    )


class MetaStep:
    """Model and optimizer of a configuration on ``meta``, and a step of them.

    Args:
        config: The resolved configuration.
        vocab_size: Number of tokens.
        num_domains: Number of domains K.
        tp: Part of a tensor-parallel group.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        vocab_size: int,
        num_domains: int,
        tp: TensorParallel = SINGLE,
    ):
        divisor = config.model.make_vocab_size_divisible_by * tp.size
        padded = -(-vocab_size // divisor) * divisor
        shape = model_shape(config, vocab_size=vocab_size, padded_vocab_size=padded)
        with META:
            self.model = GPT2Model(shape, seed=None, tp=tp)
        if self.model.soft_prompt is not None:
            freeze_all_but_prompt(self.model)
        self.model.to(DTYPES[config.precision.dtype]).train()
        self.num_domains = num_domains
        self._accumulates = config.batch.gradient_accumulation_steps > 1
        with meta_kernels():
            self.optimizer = build_optimizer(self.model, config)
        topology = cast(Any, SimpleNamespace(replica_group=None, model_rank=0))
        self._runner = cast(Any, SimpleNamespace(device=META, topology=topology))
        limit = config.optimizer.gradient_clipping
        self._engine = self._clipper = None
        if config.precision.dtype == "fp32":
            engine = SimpleNamespace(module=self.model, optimizer=self.optimizer)
            self._clipper = GradientClipper(cast(Any, engine), topology, limit)
        else:
            self._engine = _EngineArithmetic(self.optimizer, limit)

    def run(self, batches: Sequence[Batch], roles: Roles = no_roles) -> DomainSums[Tensor]:
        """Runs forward, loss, backward, per-domain sums and optimizer; reads no value."""
        recorder = DomainLossRecorder(self.num_domains, META)
        for batch in batches:
            loss = forward_and_record(self.model, batch, recorder, runner=self._runner)
            if self._accumulates:
                loss = loss / len(batches)  # as the engine's backward does
            loss.backward()
            if self._engine:
                with roles("optimizer"):
                    self._engine.after_backward()
        with roles("optimizer"):
            if self._engine:
                self._engine.step()
            else:
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
        with roles("sums"):
            return recorder.sums()

    @property
    def norm(self) -> Tensor | None:
        """The gradient norm of the last step."""
        return self._engine.norm if self._engine else self._clipper and self._clipper.norm


class _EngineArithmetic:
    """What DeepSpeed's ZeRO 1 computes on one rank in half precision, around torch's optimizer.

    Each gradient is copied into a bucket, where ranks would reduce it, and kept. A step puts the
    gradients of a group into one float32 vector, takes its norm, scales it, steps float32 master
    weights, and copies these to the model's weights. (Read from deepspeed 0.19,
    ``runtime/zero/stage_1_and_2.py``.)
    """

    def __init__(self, optimizer: torch.optim.Optimizer, limit: float):
        self._optimizer = optimizer
        self._limit = limit
        self.norm: Tensor | None = None
        self._groups: list[tuple[list[Tensor], Tensor, Tensor]] = []
        self._gradients: dict[int, Tensor] = {}
        for group in optimizer.param_groups:
            weights = group["params"]
            flat = torch.empty(sum(w.numel() for w in weights), dtype=weights[0].dtype, device=META)
            master = torch.nn.Parameter(flat.float())
            group["params"] = [master]
            self._groups.append((weights, flat, master))

    def after_backward(self) -> None:
        """Moves the gradients of a micro-batch through the bucket, and adds them up."""
        for weights, flat, _ in self._groups:
            bucket = torch.empty_like(flat)
            first = 0
            for weight in weights:
                if weight.grad is None:
                    continue
                place = bucket[first : first + weight.numel()]
                place.copy_(weight.grad.flatten())
                first += weight.numel()
                kept = self._gradients.get(id(weight))
                if kept is None:
                    self._gradients[id(weight)] = place.clone()
                else:
                    kept.add_(place)
                weight.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """The optimizer step."""
        squares = []
        for weights, _, master in self._groups:
            kept = [self._gradients[id(w)] for w in weights if id(w) in self._gradients]
            master.grad = torch.cat(kept).float()
            squares.append(torch.linalg.vector_norm(master.grad).square())
        self.norm = torch.stack(squares).sum().sqrt()
        scale = (self._limit / (self.norm + 1e-6)).clamp(max=1.0) if self._limit else None
        for _, _, master in self._groups:
            if scale is not None and master.grad is not None:
                master.grad.mul_(scale)
        self._optimizer.step()
        for weights, flat, master in self._groups:
            flat.copy_(master)
            first = 0
            for weight in weights:
                weight.data = flat[first : first + weight.numel()].view_as(weight)
                first += weight.numel()
        self._optimizer.zero_grad(set_to_none=True)
        self._gradients.clear()
