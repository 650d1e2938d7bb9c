"""Runs a step on ``meta`` and writes down its kernels, with the part of the network of each.

The part (role) is that of the module whose ``forward`` is running. An operation of the backward
pass belongs to the module that made its node: a hook marks the new nodes after each ``forward``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from megatron.model import attend as attend_module
from megatron.model.attention import SelfAttention
from megatron.model.gpt2_model import GPT2Model
from megatron.model.mlp import MLP
from megatron.model.norms import LayerNorm, NonParametricLayerNorm, RMSNorm, ScaleNorm
from megatron.model.output_layer import FinalNorm, OutputLayer
from megatron.model.transformer import TransformerLayer
from megatron.model.word_embeddings import Embedding
from megatron.sizing.flops import mean_keys
from tools.benchmark.planning.costs import Kernel, Storages, attention_kernel, kernel_of

__all__ = ["ROLES", "Recorder", "recording"]

_OF_MODULES: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
    ((Embedding,), "embedding"),
    ((LayerNorm, NonParametricLayerNorm, RMSNorm, ScaleNorm, FinalNorm), "norms"),
    ((SelfAttention,), "rotation and heads"),
    ((MLP,), "activation"),
    ((TransformerLayer,), "residual"),
    ((OutputLayer,), "loss"),
)
_OF_NAMES = {
    "query_key_value": "attention products",
    "attention.dense": "attention products",
    "mlp.dense_h_to_4h": "MLP products",
    "mlp.dense_4h_to_h": "MLP products",
    "q_norm": "norms",
    "k_norm": "norms",
    "qk_layernorm": "norms",
}
ROLES = (
    *("embedding", "norms", "attention products", "rotation and heads", "attention"),
    *("MLP products", "activation", "residual", "loss", "sums", "optimizer", "other"),
)
"""In the order of the table."""


class Recorder(TorchDispatchMode):
    """Collects the kernels of all operations that run inside."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []
        self.storages = Storages()
        self._roles: list[str] = []

    @contextmanager
    def role(self, name: str) -> Iterator[None]:
        """Operations inside belong to ``name``."""
        self._roles.append(name)
        try:
            yield
        finally:
            self._roles.pop()

    @property
    def is_repeating(self) -> bool:
        """Whether a forward pass runs inside the backward pass."""
        return bool(self._roles) and torch._C._current_autograd_node() is not None

    def current_role(self) -> str:
        """The role of the operation that runs now."""
        if self._roles:
            return self._roles[-1]
        node = torch._C._current_autograd_node()
        return "other" if node is None else node.metadata.get("role", "other")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        role = self.current_role()
        kernel = kernel_of(
            *(func, args, kwargs, result),
            role=role,
            at=self.storages,
            is_repeated=self.is_repeating,
        )
        if kernel is not None:
            self.kernels.append(kernel)
        return result

    def follow(self, model: nn.Module) -> None:
        """Names the operations of ``model`` by its modules, from now on."""
        for name, module in model.named_modules():
            role = _role_of(name, module)
            if role is not None:
                module.register_forward_pre_hook(lambda *_, r=role: self._roles.append(r))
                module.register_forward_hook(
                    lambda _, __, output, r=role: self._leave(r, output), always_call=True
                )

    def _leave(self, role: str, output: Any) -> None:
        self._roles.pop()
        outputs = output if isinstance(output, tuple) else (output,)
        nodes = [o.grad_fn for o in outputs if isinstance(o, Tensor) and o.grad_fn is not None]
        while nodes:
            node = nodes.pop()
            if "role" in node.metadata:
                continue
            node.metadata["role"] = role
            nodes += [parent for parent, _ in node.next_functions if parent is not None]


def _role_of(name: str, module: nn.Module) -> str | None:
    for ending, role in _OF_NAMES.items():
        if name.endswith(ending):
            return role
    for kinds, role in _OF_MODULES:
        if isinstance(module, kinds):
            return role
    return "other" if isinstance(module, GPT2Model) else None


class _FusedAttention(torch.autograd.Function):
    """Stands in for a fused attention kernel: forward two products, backward five.

    One of the five computes the scores again, which the model does not need.
    """

    @staticmethod
    def forward(ctx, query, key, value, recorder, keys):
        ctx.save_for_backward(query, key, value)
        ctx.recorder, ctx.keys = recorder, keys
        batch, heads, length, size = query.shape
        out = torch.empty((batch, length, heads, size), dtype=query.dtype, device=query.device)
        ctx.sums = torch.empty((batch, heads, length), dtype=torch.float32, device=query.device)
        ctx.result = out = out.transpose(1, 2)
        product = 2.0 * batch * heads * length * keys * size
        recorder.kernels.append(
            attention_kernel(
                "attention",
                (query, key, value),
                (out, ctx.sums),
                flops=2 * product,
                model_flops=2 * product,
                at=recorder.storages,
                is_repeated=recorder.is_repeating,
            )
        )
        return out

    @staticmethod
    def backward(ctx, *grads):
        query, key, value = ctx.saved_tensors
        batch, heads, length, size = query.shape
        product = 2.0 * batch * heads * length * ctx.keys * size
        # dense, as the kernels return them
        results = tuple(torch.empty_like(t).contiguous() for t in (query, key, value))
        ctx.recorder.kernels.append(
            attention_kernel(
                "attention backward",
                (query, key, value, ctx.result, grads[0], ctx.sums),
                results,
                flops=5 * product,
                model_flops=4 * product,
                at=ctx.recorder.storages,
                is_repeated=False,
            )
        )
        return (*results, None, None)


@contextmanager
def recording(model: GPT2Model) -> Iterator[Recorder]:
    """Records the kernels of ``model``; attention is one kernel, as on a GPU."""
    recorder = Recorder()
    recorder.follow(model)
    plain = F.scaled_dot_product_attention

    def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **options):
        if attn_mask is not None:  # such kernels read a matrix, which is recorded as it is
            return plain(query, key, value, attn_mask, dropout_p, is_causal, **options)
        total = key.shape[2]
        return _FusedAttention.apply(query, key, value, recorder, total / 2 if is_causal else total)

    def windowed(query, key, value, documents, span, *, bias_values=None, compiled=True):
        keys = mean_keys(span.reach, key.shape[2])
        return _FusedAttention.apply(query, key, value, recorder, keys)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", attention))
        stack.enter_context(mock.patch.object(attend_module, "flexible_attention", windowed))
        stack.enter_context(recorder)
        yield recorder
