#!/usr/bin/env python
"""Causal attention in bfloat16 on a CPU: our blocks through oneDNN, and torch's kernel.

Forward and backward of `megatron.model.cpu.causal_attention` and of torch's
``scaled_dot_product_attention``, in turns. Prints milliseconds (medians) and how many times as fast
ours is; our programs call it where `is_faster` holds.

    OMP_NUM_THREADS=1 python -m tools.benchmark.attention_products [--rounds 9] [--batch 4]
        [--positions 512 1024 2048]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING

from megatron.runtime import accelerator
from tools.benchmark.processor import processor
from tools.benchmark.turns import interleaved_seconds

if TYPE_CHECKING:
    from torch import Tensor

HEADS = ((4, 32), (8, 64))
"""(number of heads, size of a head)."""


def compare(batch: int, heads: tuple[int, int], positions: int, *, rounds: int) -> str:
    """Returns a line of the table."""
    import torch
    import torch.nn.functional as F

    from megatron.model.cpu.causal_attention import causal_attention

    count, size = heads
    shape = (batch, count, positions, size)
    inputs = [torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    grad = torch.randn(shape, dtype=torch.bfloat16)

    def both_passes(attend: Callable[..., Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(attend(*inputs), inputs, grad)

    def through_torch(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)

    ways = {"ours": both_passes(causal_attention), "torch": both_passes(through_torch)}
    ours, theirs = (
        statistics.median(seconds) * 1e3
        for seconds in interleaved_seconds(ways, rounds=rounds).values()
    )
    return f"{count:5d}{size:5d}{positions:10d}{ours:9.1f}{theirs:9.1f}{theirs / ours:7.2f}"


def main() -> None:
    """Parses the command line and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds of each way")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--positions", nargs="+", type=int, default=[512, 1024, 2048])
    args = parser.parse_args()
    accelerator.prepare_environment()  # as our programs do before they load torch
    accelerator.keep_freed_memory()
    import torch

    print(f"{processor()}; {torch.get_num_threads()} threads; batch {args.batch}; ms")
    print(f"{'heads':>5}{'size':>5}{'positions':>10}{'ours':>9}{'torch':>9}{'times':>7}")
    for heads in HEADS:
        for positions in args.positions:
            print(compare(args.batch, heads, positions, rounds=args.rounds), flush=True)


if __name__ == "__main__":
    main()
