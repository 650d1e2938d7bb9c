"""Weights that do not change for a while, laid out once for the products that read them.

A token at a time, a product is as fast as its weight is read. On a CPU oneDNN reads its own blocks
several times as fast as MKL reads rows (`tools/benchmark/generation_throughput.py` prints the share
of the memory's rate), and making them costs about as much as five such products.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from megatron.model.cpu.matrix_products import has_repeated_product, repeated_product
from megatron.model.linear import ColumnParallelLinear, RowParallelLinear
from megatron.model.output_layer import OutputLayer

__all__ = ["frozen_weights"]

_SMALLEST = 1 << 18
"""Elements from which on the blocks win, measured: below, oneDNN's 20 us a call decide."""

_NUM_ROWS = 64
"""What the blocks are laid out for; blocks for one row are rows, and twice as slow for it."""


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
            module.product = repeated_product(weight.detach(), _NUM_ROWS, bias)
            changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            module.product = None


def _is_worth_it(weight: Tensor) -> bool:
    return has_repeated_product(weight, _NUM_ROWS) and weight.numel() >= _SMALLEST
