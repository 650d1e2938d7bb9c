#!/usr/bin/env python
"""The float32 products of a linear layer on a CPU: through oneDNN, and through torch's ``@``.

The product, that for the gradient of the features and that for the gradient of the weight, for
layers and unembeddings of several sizes. Both ways take turns. Prints milliseconds (medians) and
how many times as fast oneDNN is. `megatron.model.cpu.products` calls it on processors with AVX-512
that are not Intel's.

    OMP_NUM_THREADS=1 python -m tools.benchmark.matrix_products [--rounds 9] [--rows 512 2048]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch

from megatron.model.cpu import products
from megatron.model.cpu.products import product, transposed_product
from tools.benchmark.processor import processor
from tools.benchmark.turns import interleaved_seconds

LAYERS = ((128, 512), (512, 512), (512, 2048), (2048, 512), (128, 8192), (512, 8192), (128, 50304))
"""(inputs, outputs)."""


def _through_onednn(action: Callable[[], object], wins: bool) -> Callable[[], object]:
    def act() -> object:
        products._WINS = wins
        return action()

    return act


def compare(num_rows: int, layer: tuple[int, int], *, rounds: int) -> str:
    """Returns a line of the table."""
    inner, columns = layer
    weight, rows = torch.randn(columns, inner), torch.randn(num_rows, inner)
    grad = torch.randn(num_rows, columns)
    kinds: dict[str, Callable[[], object]] = {
        "forward": lambda: product(rows, weight),
        "features": lambda: product(grad, weight.t()),
        "weight": lambda: transposed_product(grad, rows).contiguous(),
    }
    ways = {
        f"{kind} {wins}": _through_onednn(action, wins)
        for kind, action in kinds.items()
        for wins in (False, True)
    }
    medians = [
        statistics.median(s) * 1e3 for s in interleaved_seconds(ways, rounds=rounds).values()
    ]
    pairs = list(zip(medians[::2], medians[1::2], strict=True))
    cells = "".join(f"{plain:10.2f}{ours:9.2f}{plain / ours:6.2f}" for plain, ours in pairs)
    return f"{num_rows:6d} {inner:5d} -> {columns:<6d}{cells}"


def main() -> None:
    """Parses the command line and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds of each product")
    parser.add_argument("--rows", nargs="+", type=int, default=[512, 2048])
    args = parser.parse_args()
    print(f"{processor()}; {torch.get_num_threads()} threads; ms")
    heads = "".join(f"{kind:>10}{'':15}" for kind in ("product", "features", "weight"))
    print(f"{'':<22}{heads}\n{'rows':>6} {'layer':<15}" + f"{'@':>10}{'oneDNN':>9}{'times':>6}" * 3)
    with torch.no_grad():
        for num_rows in args.rows:
            for layer in LAYERS:
                print(compare(num_rows, layer, rounds=args.rounds), flush=True)


if __name__ == "__main__":
    main()
