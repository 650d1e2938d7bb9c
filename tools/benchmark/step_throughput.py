#!/usr/bin/env python
"""Tokens a second of our training step against a plain loop over transformers' GPT-NeoX.

Both train the same shape on the same number of tokens with fused AdamW in fp32, steps interleaved.
Ours is the whole step as `train.py` runs it: plan, batch, DeepSpeed engine, per-domain
losses, update of the mixture, optimizer. Theirs is forward, loss, backward, clip, optimizer on a
batch that lies ready. Each side has a process of its own and waits while the other runs. Prints the
ratio, the machine's own matrix-product rate at the model's shapes, the share of it that our step
reaches, peak memory of both, and (``--profile``) where our step spends its time.

    python -m tools.benchmark.step_throughput [--shapes 14M 70M] [--steps 8] [--profile]
"""

from __future__ import annotations

import argparse
import functools
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.benchmark.workers import Answers, Worker

VOCAB_SIZE = 50304
WARMUP_STEPS = 2
BATCH, SEQ_LENGTH = 4, 512


@dataclass(frozen=True)
class Shape:
    """A Pythia-like network."""

    num_layers: int
    hidden_size: int
    num_attention_heads: int

    @property
    def matrix_flops_per_token(self) -> float:
        """Forward and backward products of weight matrices; attention scores are left out."""
        return 6.0 * (12 * self.num_layers * self.hidden_size**2 + VOCAB_SIZE * self.hidden_size)


SHAPES = {"14M": Shape(6, 128, 4), "70M": Shape(6, 512, 8)}


def our_step(shape: Shape, folder: Path):
    """Returns a function that runs one iteration of the project's training loop."""
    from megatron.training import train
    from tools.benchmark.synthetic_run import make_run

    run = make_run(
        folder,
        vocab_size=VOCAB_SIZE,
        num_domains=10,
        settings={
            "num_layers": shape.num_layers,
            "hidden_size": shape.hidden_size,
            "num_attention_heads": shape.num_attention_heads,
            "seq_length": SEQ_LENGTH,
            "max_position_embeddings": SEQ_LENGTH,
            "pos_emb": "rotary",
            "rotary_pct": 0.25,
            "gpt_j_residual": True,
            "no_weight_tying": True,
            "train_batch_size": BATCH,
            "train_micro_batch_size_per_gpu": BATCH,
        },
    )
    arguments = run.loop_arguments()

    def step() -> None:
        train(hooks=[], last_step=run.state.step + 1, **arguments)

    return step


def their_step(shape: Shape):
    """Returns a function that runs one step of a plain loop over transformers' model."""
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=shape.hidden_size,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_attention_heads,
            intermediate_size=4 * shape.hidden_size,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.25,
            },
            max_position_embeddings=SEQ_LENGTH,
            use_parallel_residual=True,
            attention_dropout=0.0,
            hidden_dropout=0.0,
        )
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)
    tokens = torch.randint(0, VOCAB_SIZE, (BATCH, SEQ_LENGTH))

    def step() -> None:
        model(input_ids=tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def matrix_product_rate(shape: Shape, *, repeats: int = 5) -> float:
    """FLOPS of plain products at the model's shapes, weighted as in a training step."""
    import torch

    tokens = BATCH * SEQ_LENGTH
    h = shape.hidden_size
    layers = shape.num_layers
    # (rows, inner, columns, how often) of the forward pass; the backward pass has two of each kind
    products = [
        (tokens, h, 3 * h, layers),
        (tokens, h, h, layers),
        (tokens, h, 4 * h, layers),
        (tokens, 4 * h, h, layers),
        (tokens, h, VOCAB_SIZE, 1),
    ]
    flops = seconds = 0.0
    for rows, inner, columns, count in products:
        x, weight, grad = (
            torch.randn(*s) for s in ((rows, inner), (columns, inner), (rows, columns))
        )
        for left, right in ((x, weight.t()), (grad, weight), (grad.t(), x)):
            product = functools.partial(torch.mm, left, right, out=left @ right)
            best = min(_seconds(product) for _ in range(repeats))
            seconds += count * best
            flops += count * 2.0 * rows * inner * columns
    return flops / seconds


def _seconds(action) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def our_side(shape_name: str) -> Answers:
    """Answers of our process, which `train.py` would set up alike."""
    from megatron.initialize import shutdown

    _join_process_group()
    # `end` keeps it: the data are read from it as long as the process lives
    folder = tempfile.TemporaryDirectory()
    step = our_step(SHAPES[shape_name], Path(folder.name))

    def end() -> None:
        shutdown()
        folder.cleanup()

    return {
        **_answers(step),
        "rate": lambda: matrix_product_rate(SHAPES[shape_name]),
        "profile": lambda: _profile(step),
        "end": end,
    }


def their_side(shape_name: str) -> Answers:
    """Answers of the process with the plain loop."""
    return {**_answers(their_step(SHAPES[shape_name])), "end": lambda: None}


def _answers(step: Callable[[], None]) -> dict[str, Callable[..., Any]]:
    return {
        "step": lambda: _seconds(step),
        "peak": lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _profile(step: Callable[[], None]) -> str:
    import torch

    with torch.profiler.profile() as profiler:
        for _ in range(3):
            step()
    return profiler.key_averages().table(
        sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=60
    )


def _join_process_group() -> None:
    """Sets the process up as `train.py` does."""
    from megatron.initialize import initialize_megatron
    from megatron.neox_arguments import NeoXArgs, resolve

    minimal = {
        "num_layers": 1,
        "hidden_size": 8,
        "num_attention_heads": 1,
        "seq_length": 8,
        "max_position_embeddings": 8,
        "train_micro_batch_size_per_gpu": 1,
        "train_iters": 1,
        "optimizer": {"type": "Adam", "params": {"lr": 1e-4}},
    }
    initialize_megatron(resolve(NeoXArgs.from_dict(minimal), world_size=1), handle_signals=False)


def compare(name: str, steps: int, profile: bool) -> None:
    """Prints the table of one shape."""
    shape = SHAPES[name]
    sides = {"ours": Worker(our_side, name), "theirs": Worker(their_side, name)}
    times: dict[str, list[float]] = {who: [] for who in sides}
    for number in range(WARMUP_STEPS + steps):
        for who, worker in sides.items():
            seconds = worker.ask("step")
            if number >= WARMUP_STEPS:
                times[who].append(seconds)
    rate = sides["ours"].ask("rate")
    tokens = BATCH * SEQ_LENGTH
    print(f"{name}: batch {BATCH} x {SEQ_LENGTH}, fp32, {os.cpu_count()} cores")
    for who, worker in sides.items():
        print(
            f"  {who:<7}{tokens / statistics.median(times[who]):9.0f} tokens/s (median), "
            f"{tokens / min(times[who]):9.0f} (best), peak memory {worker.ask('peak'):.0f} MiB"
        )
    ratios = [theirs / ours for ours, theirs in zip(times["ours"], times["theirs"], strict=True)]
    print(
        f"  ratio  {statistics.median(ratios):.2f} (median of pairs), "
        f"{min(times['theirs']) / min(times['ours']):.2f} (best against best)"
    )
    flops = shape.matrix_flops_per_token * tokens
    print(
        f"  matrix products alone {rate / 1e9:.0f} GFLOPS; our step reaches "
        f"{flops / statistics.median(times['ours']) / rate:.2f} of it (median), "
        f"{flops / min(times['ours']) / rate:.2f} (best)"
    )
    if profile:
        print(sides["ours"].ask("profile"))
    for worker in sides.values():
        worker.ask("end")
        worker.close()


def main() -> None:
    """Parses the command line and prints a table a shape."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each side")
    parser.add_argument("--profile", action="store_true", help="print where our step spends time")
    args = parser.parse_args()
    for name in args.shapes:
        compare(name, args.steps, args.profile)


if __name__ == "__main__":
    main()
