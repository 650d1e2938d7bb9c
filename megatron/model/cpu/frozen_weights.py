"""Weights that do not change for a while, laid out once for the products that read them.

A few rows at a time, a product is as fast as its weight is read. On a CPU oneDNN reads its own
blocks faster than MKL reads rows, and making them costs about as much as five such products.
``python -m tools.benchmark.generation_throughput --without frozen`` prints what they are worth.
Training multiplies many rows by weights that change each step: there oneDNN wins nothing over MKL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron.model.linear import ColumnParallelLinear, RowParallelLinear
from megatron.model.output_layer import OutputLayer

__all__ = ["frozen_weights"]

_SMALLEST = 1 << 18
"""Elements from which on the blocks win, measured: below, oneDNN's 20 us a call decide."""

_NUM_ROWS = 64
"""What the blocks are laid out for; blocks for one row are rows, and twice as slow for it."""


def _has_blocks() -> bool:
    operators = torch.ops.mkldnn
    return torch.backends.mkldnn.is_available() and all(
        hasattr(operators, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
    )


_HAS_BLOCKS = _has_blocks()


@contextmanager
def frozen_weights(model: nn.Module) -> Iterator[None]:
    """Copies the large weights of a model into blocks, where this is quicker, for the block's time.

    The results stay the same but for rounding. The memory of the copied weights is needed twice.
    Inside another such block, and where the device or the precision has no use for it, nothing
    happens.

    Args:
        model: Its weights must not change, and it must not train, inside the block.
    """
    changed: list[ColumnParallelLinear | RowParallelLinear | OutputLayer] = []
    for module in model.modules():
        if not isinstance(module, ColumnParallelLinear | RowParallelLinear | OutputLayer):
            continue
        weight, bias = module.product_operands()
        if module.product is None and _is_worth_it(weight):
            module.product = _product(weight.detach(), bias)
            changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            module.product = None


def _is_worth_it(weight: Tensor) -> bool:
    return (
        _HAS_BLOCKS
        and weight.dtype == torch.float32
        and weight.device.type == "cpu"
        and weight.numel() >= max(1, _SMALLEST)  # a rank may hold no token of the vocabulary
    )


def _product(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """``F.linear`` with this weight (m, k), without gradients."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, _NUM_ROWS)

    def product(rows: Tensor) -> Tensor:
        if not rows.numel():
            return F.linear(rows, weight, bias)
        return torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")

    return product
