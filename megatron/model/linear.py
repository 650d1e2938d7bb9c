"""Linear layers that are cut over a tensor-parallel group, along their output or their input.

Megatron's pair (Shoeybi et al. 2019, arXiv:1909.08053): in the forward pass the first product needs
no communication, the second needs one sum. With a group of one both are plain linear layers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from megatron.model.cpu.products import linear
from megatron.model.init_functions import zeros
from megatron.model.parameters import InitMethod, make_parameter
from megatron.mpu.tensor_parallel import TensorParallel

__all__ = ["ColumnParallelLinear", "RowParallelLinear", "add_both_biases"]


class ColumnParallelLinear(nn.Module):
    """``x @ weight.T + bias``; each rank computes its part of the output features.

    Args:
        out_features: Width of the output, over all ranks.
        num_fused: Number of equally wide projections in one matrix; each of them is cut. If it is
            above 1, the weight has the shape (num_fused, out_features / num_fused, in_features).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        init_method: InitMethod,
        bias: bool,
        tp: TensorParallel,
        num_fused: int = 1,
    ):
        super().__init__()
        each = out_features // num_fused
        leading = (num_fused,) if num_fused > 1 else ()
        shard = (*leading, tp.divide(each, "output features"))
        tp_dim = len(leading)
        self.weight = make_parameter(
            *shard,
            in_features,
            init_method=init_method,
            logical_shape=(*leading, each, in_features),
            tp_dim=tp_dim,
        )
        self.product: Callable[[Tensor], Tensor] | None = None
        self.bias = (
            make_parameter(
                *shard,
                init_method=zeros,
                logical_shape=(*leading, each),
                tp_dim=tp_dim,
                has_weight_decay=False,
            )
            if bias
            else None
        )

    def forward(self, features: Tensor) -> Tensor:
        """(..., in) -> (..., out / size); ``features`` come from `TensorParallel.enter`."""
        if self.product is not None:
            return self.product(features)
        return linear(features, *self.product_operands())

    def product_operands(self) -> tuple[Tensor, Tensor | None]:
        """The matrix (out, in) and the bias (out,); `frozen_weights` sets ``product`` from them."""
        if self.weight.dim() == 2:
            return self.weight, self.bias
        return self.weight.flatten(0, 1), None if self.bias is None else self.bias.flatten()


class RowParallelLinear(nn.Module):
    """``x @ weight.T + bias``; each rank has a part of the input features.

    The product alone is a partial sum: `finish` adds the parts of all ranks, then the bias once.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        init_method: InitMethod,
        bias: bool,
        tp: TensorParallel,
    ):
        super().__init__()
        self.tp = tp
        self.product: Callable[[Tensor], Tensor] | None = None
        self.weight = make_parameter(
            out_features,
            tp.divide(in_features, "input features"),
            init_method=init_method,
            logical_shape=(out_features, in_features),
            tp_dim=1,
        )
        self.bias = (
            make_parameter(out_features, init_method=zeros, has_weight_decay=False)
            if bias
            else None
        )

    @property
    def leaves_bias(self) -> bool:
        """Whether `finish` adds the bias: with several ranks, and in compiled code.

        There it is one more term of a sum that is computed anyway. Otherwise `forward` adds it.
        """
        return self.tp.size > 1 or torch.compiler.is_compiling()

    def forward(self, features: Tensor) -> Tensor:
        """(..., in / size) -> partial sums (..., out) for `finish`."""
        if self.product is not None:
            return self.product(features)
        return linear(features, *self.product_operands())

    def product_operands(self) -> tuple[Tensor, Tensor | None]:
        """Weight, and bias if `forward` adds it; `frozen_weights` sets ``product`` from them."""
        return self.weight, None if self.leaves_bias else self.bias

    def finish(self, partial: Tensor) -> Tensor:
        """Sums the parts and adds the bias."""
        return self.add_bias(self.tp.leave(partial))

    def add_bias(self, total: Tensor) -> Tensor:
        """Adds the bias, if `forward` did not, to a sum of partial products."""
        bias = self.tp.shared(self.bias)
        return total if bias is None or not self.leaves_bias else total + bias


def add_both_biases(total: Tensor, first: RowParallelLinear, second: RowParallelLinear) -> Tensor:
    """Adds the biases of two layers to the sum of their partial products.

    Both biases have the same gradient. Compiled code computes it once and copies it: Inductor's C++
    code for half precision (torch 2.13) names both results of two equal sums alike, which no
    compiler accepts ("conflicting declaration").
    """
    if not torch.compiler.is_compiling() or first.bias is None or second.bias is None:
        return second.add_bias(first.add_bias(total))
    return total + _SumOfBiases.apply(*(layer.tp.shared(layer.bias) for layer in (first, second)))


class _SumOfBiases(torch.autograd.Function):
    """``first + second``, whose gradients have memory of their own.

    Inductor would make two tensors of one memory, and both gradients of the next micro-batch would
    be added to it.
    """

    @staticmethod
    def forward(ctx, first, second):
        return first + second

    @staticmethod
    def backward(ctx, grad):
        return grad, grad.clone()
