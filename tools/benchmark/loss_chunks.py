#!/usr/bin/env python
"""Time and memory of the one-pass loss by chunk size.

For each shape, forward and backward of `chunked_cross_entropy` at several `CHUNK_BYTES` against
`F.cross_entropy` on the whole matrix of logits. All ways take turns, so that a busy machine slows
them alike. Freed memory is kept, as in training. Peak memory is the growth of a process that does
nothing else.

    python -m tools.benchmark.loss_chunks [--rounds 5] [--hidden 128 512] [--vocab 50304 8192]
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from megatron.model.loss import VocabularyPart, chunked_cross_entropy
from megatron.runtime import accelerator
from megatron.sizing import loss_chunks
from tools.benchmark.turns import interleaved_seconds

CHUNK_MEBIBYTES = (4, 16, 64, 128, 256)
FULL = "full logits"


def make_inputs(*, tokens: int, hidden: int, vocab: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states (n, h) and weight (v, h), both with gradients, and labels (n,)."""
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(tokens, hidden, generator=generator).requires_grad_()
    weight = (0.02 * torch.randn(vocab, hidden, generator=generator)).requires_grad_()
    return states, weight, torch.randint(0, vocab, (tokens,), generator=generator)


def full_loss(states: Tensor, weight: Tensor, labels: Tensor) -> float:
    """Forward and backward on the whole (n, v) matrix; returns the mean loss."""
    states.grad = weight.grad = None
    loss = F.cross_entropy(states @ weight.t(), labels)
    loss.backward()
    return loss.item()


def chunked_loss(states: Tensor, weight: Tensor, labels: Tensor, *, mebibytes: int) -> float:
    """Forward and backward in chunks of ``mebibytes`` of logits; returns the mean loss."""
    states.grad = weight.grad = None
    token_weight = torch.full((len(labels),), 1.0 / len(labels))
    with mock.patch.object(loss_chunks, "CHUNK_BYTES", mebibytes << 20):
        loss, _ = chunked_cross_entropy(
            states,
            weight,
            labels,
            token_weight,
            part=VocabularyPart(0, len(weight)),
        )
        loss.backward()
    return loss.item()


def loss_ways(inputs: tuple[Tensor, Tensor, Tensor]) -> dict[str, Callable[[], float]]:
    """Name -> one forward and backward pass."""
    ways: dict[str, Callable[[], float]] = {FULL: lambda: full_loss(*inputs)}
    for size in CHUNK_MEBIBYTES:
        ways[f"{size} MiB chunks"] = lambda size=size: chunked_loss(*inputs, mebibytes=size)
    return ways


def peak_growth(shape: Mapping[str, int], name: str) -> float:
    """MiB that the process grows by through one way; call it in a fresh process, on Linux."""
    accelerator.keep_freed_memory()
    inputs = make_inputs(**shape)
    before = _peak_mebibytes()
    loss_ways(inputs)[name]()
    return _peak_mebibytes() - before


def _peak_mebibytes() -> float:
    # getrusage would count the parent's peak: a child starts on its memory
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def compare(shape: Mapping[str, int], *, rounds: int) -> None:
    """Prints the tables of one shape."""
    inputs = make_inputs(**shape)
    ways = loss_ways(inputs)
    seconds = interleaved_seconds(ways, rounds=rounds)
    context = multiprocessing.get_context("spawn")
    print("tokens {tokens}, hidden {hidden}, vocabulary {vocab}".format(**shape))
    print(f"  {'loss, forward and backward':<28}{'ms median':>10}{'best':>8}{'peak MiB':>10}")
    for name in ways:
        with context.Pool(1) as pool:
            peak = pool.apply(peak_growth, (dict(shape), name))
        print(f"  {name:<28}{_times(seconds[name])}{peak:10.0f}", flush=True)


def _times(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds) * 1e3:10.1f}{min(seconds) * 1e3:8.1f}"


def main() -> None:
    """Parses the command line and prints a table per shape."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hidden", nargs="+", type=int, default=[128, 512])
    parser.add_argument("--vocab", nargs="+", type=int, default=[50304, 8192])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    accelerator.keep_freed_memory()
    for hidden in args.hidden:
        for vocab in args.vocab:
            shape = {"tokens": args.tokens, "hidden": hidden, "vocab": vocab}
            compare(shape, rounds=args.rounds)


if __name__ == "__main__":
    main()
