"""Stores weights that do not change for a while in the layout that a CPU multiplies fastest.

The time of a product with few rows is the time to read its weight. On a CPU oneDNN reads its own
blocks faster than MKL reads rows; making the blocks costs as much as about five such products.
``python -m tools.benchmark.generation_throughput --without frozen`` measures the gain. Training
multiplies many rows by weights that change at each step; see `megatron.model.cpu.products`.
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
"""Elements from which blocks were measured faster; below, oneDNN's 20 us per call dominate."""

_NUM_ROWS = 64
"""Rows that the blocks are made for; blocks made for one row would be rows, and twice as slow."""


def _has_blocks() -> bool:
    operators = torch.ops.mkldnn
    return torch.backends.mkldnn.is_available() and all(
        hasattr(operators, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
    )


_HAS_BLOCKS = _has_blocks()


@contextmanager
def frozen_weights(model: nn.Module) -> Iterator[None]:
    """Inside the ``with`` block, products use copies of large weights in oneDNN's layout if faster.

    Results are the same except for rounding. The copied weights need their memory twice. Nothing
    happens inside another such block, or if the device or the precision gains nothing.

    Args:
        model: The model; inside the ``with`` block it must not train and its weights must not
            change.
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
        and weight.numel() >= max(1, _SMALLEST)  # a rank may have no token of the vocabulary
    )


def _product(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """``F.linear`` with this weight (m, k), without gradients."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, _NUM_ROWS)

    def product(rows: Tensor) -> Tensor:
        if not rows.numel():
            return F.linear(rows, weight, bias)
        return torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")

    return product
