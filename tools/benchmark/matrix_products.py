#!/usr/bin/env python
"""Products of a linear layer in float32 on a CPU: through oneDNN, and through torch's ``@``.

The forward product and the one for the gradient of the features, for layers of several widths and
numbers of rows, and for an unembedding. Both ways take turns. Prints milliseconds (medians) and how
many times as fast oneDNN is: above 1 for large products on AMD's processors and for few rows on
Intel's, which is when `megatron.model.cpu.matrix_products` calls it.

    python -m tools.benchmark.matrix_products [--rounds 9] [--rows 16 128 512 2048]
"""

from __future__ import annotations

import argparse
import statistics

import torch
from torch.nn import functional as F

from megatron.model.cpu.matrix_products import onednn_product
from megatron.runtime import accelerator
from tools.benchmark.turns import interleaved_seconds

LAYERS = (
    (64, 192),
    (128, 128),
    (128, 512),
    (512, 512),
    (512, 2048),
    (2048, 512),
    (2048, 2048),
    (128, 50304),
    (512, 50304),
)
"""(inputs, outputs)."""


def compare(num_rows: int, layer: tuple[int, int], *, rounds: int) -> str:
    """Returns a line of the table."""
    inner, columns = layer
    weight, bias = torch.randn(columns, inner), torch.zeros(columns)
    rows, grad = torch.randn(num_rows, inner), torch.randn(num_rows, columns)
    seconds = interleaved_seconds(
        {
            "forward @": lambda: F.linear(rows, weight, bias),
            "forward oneDNN": lambda: onednn_product(rows, weight),
            "backward @": lambda: grad @ weight,
            "backward oneDNN": lambda: onednn_product(grad, weight.t()),
        },
        rounds=rounds,
    )
    plain, ours, plain_back, ours_back = (statistics.median(s) * 1e3 for s in seconds.values())
    return (
        f"{num_rows:6d} {inner:5d} -> {columns:<5d}{plain:9.2f}{ours:9.2f}{plain / ours:7.2f}"
        f"{plain_back:11.2f}{ours_back:9.2f}{plain_back / ours_back:7.2f}"
    )


def main() -> None:
    """Parses the command line and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds of each product")
    parser.add_argument("--rows", nargs="+", type=int, default=[16, 128, 512, 2048])
    args = parser.parse_args()
    accelerator.keep_freed_memory()
    print(f"{'':<21}{'forward, ms':>18}{'':7}{'backward, ms':>20}")
    columns = f"{'@':>9}{'oneDNN':>9}{'times':>7}"
    print(f"{'rows':>6} {'layer':<14}{columns}  {columns}")
    with torch.no_grad():
        for num_rows in args.rows:
            for layer in LAYERS:
                print(compare(num_rows, layer, rounds=args.rounds), flush=True)


if __name__ == "__main__":
    main()
