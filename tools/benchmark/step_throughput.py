#!/usr/bin/env python
"""Tokens per second of our training step against plain loops over transformers' GPT-NeoX.

All train the same shape on the same number of tokens with fused AdamW, steps interleaved. Ours is
the whole step as `train.py` runs it: plan, batch, DeepSpeed engine, per-domain losses, update of
the mixture, optimizer. Theirs is forward, loss, backward, clip, optimizer on a batch that is ready.
In float32 there is one plain loop; in bfloat16 there are two: float32 weights under
`torch.autocast`, which is what most people write, and weights and moments in bfloat16 (`pure`),
which keeps no master weights as ours does. A further side computes nothing but the matrix products
of a step, as plain ``torch.mm``: the machine's own rate at the model's shapes. Each side has a
process of its own and waits while another runs. Prints the processor, the rates and their ratios,
the share of the machine's own rate that our step reaches, peak memory, and (``--profile``) where
each side's step spends its time (`step_parts`). On a machine that others use, take one thread and
``--processor-time``, which does not count the time in which another process has the core.

    [OMP_NUM_THREADS=1] python -m tools.benchmark.step_throughput [--shapes 14M 70M]
        [--vocab-sizes 50304] [--precisions fp32 bfloat16] [--steps 8] [--processor-time]
        [--profile]
"""

from __future__ import annotations

import argparse
import functools
import itertools
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.benchmark import step_parts
from tools.benchmark.processor import processor
from tools.benchmark.turns import Clock, seconds_of
from tools.benchmark.workers import Answers, Side, Worker

VOCAB_SIZE = 50304
WARMUP_TURNS = 1
BATCH, SEQ_LENGTH = 4, 512
SIDES = {"fp32": ("ours", "plain loop"), "bfloat16": ("ours", "autocast", "pure")}
"""Who computes in each precision; the matrix products alone come on top."""
CLOCKS: dict[str, Clock] = {"step": time.perf_counter, "processor": time.process_time}
"""Requests for a step, and what measures it."""


@dataclass(frozen=True)
class Shape:
    """A Pythia-like network."""

    num_layers: int
    hidden_size: int
    num_attention_heads: int

    def matrix_flops_per_token(self, vocab_size: int) -> float:
        """Forward and backward products of weight matrices; attention scores are left out."""
        return 6.0 * (12 * self.num_layers * self.hidden_size**2 + vocab_size * self.hidden_size)


SHAPES = {"14M": Shape(6, 128, 4), "70M": Shape(6, 512, 8)}


@dataclass(frozen=True)
class Job:
    """What a loop trains on, and how."""

    batch: int = BATCH
    seq_length: int = SEQ_LENGTH
    vocab_size: int = VOCAB_SIZE
    device: str = "cpu"
    precision: str = "fp32"
    """fp32, or bfloat16: ours keeps float32 master weights, theirs computes under autocast."""
    compiled: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.batch * self.seq_length


def settings_of(shape: Shape, job: Job) -> dict[str, Any]:
    """The keys of our configuration for a shape."""
    return {
        "num_layers": shape.num_layers,
        "hidden_size": shape.hidden_size,
        "num_attention_heads": shape.num_attention_heads,
        "seq_length": job.seq_length,
        "max_position_embeddings": job.seq_length,
        "pos_emb": "rotary",
        "rotary_pct": 0.25,
        "gpt_j_residual": True,
        "no_weight_tying": True,
        "train_batch_size": job.batch,
        "train_micro_batch_size_per_gpu": job.batch,
        "precision": job.precision,
        "torch_compile": job.compiled,
    }


def our_run(shape: Shape, folder: Path, job: Job) -> Any:
    """The project's training run of a shape, with data in ``folder``."""
    from tools.benchmark.synthetic_run import make_run

    settings = settings_of(shape, job)
    return make_run(folder, vocab_size=job.vocab_size, num_domains=10, settings=settings)


def step_of(run: Any) -> Callable[[], None]:
    """Returns a function that runs one iteration of a run."""
    from megatron.training import train

    arguments = run.loop_arguments()

    def step() -> None:
        train(hooks=[], last_step=run.state.step + 1, **arguments)

    return step


def their_step(shape: Shape, job: Job, *, is_pure: bool = False) -> Callable[[], None]:
    """Returns a function that runs one step of a plain loop over transformers' model.

    In bfloat16 the weights are float32 under autocast, or bfloat16 too if ``is_pure``.
    """
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=job.vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_attention_heads,
        intermediate_size=4 * shape.hidden_size,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.25,
        },
        max_position_embeddings=job.seq_length,
        use_parallel_residual=True,
        attention_dropout=0.0,
        hidden_dropout=0.0,
    )
    model = GPTNeoXForCausalLM(config).train().to(job.device)
    if is_pure:
        model.to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)
    tokens = torch.randint(0, job.vocab_size, (job.batch, job.seq_length), device=job.device)
    forward = torch.compile(model, dynamic=False) if job.compiled else model
    is_mixed = job.precision == "bfloat16" and not is_pure

    def step() -> None:
        with torch.autocast(job.device, torch.bfloat16, enabled=is_mixed):
            loss = forward(input_ids=tokens, labels=tokens).loss
        loss.backward()
        with torch.profiler.record_function(step_parts.OPTIMIZER_RANGE):
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return step


def product_seconds(shape: Shape, job: Job) -> Callable[[Clock], float]:
    """Returns a function that computes a step's products of weights, and returns its seconds.

    Products of a kind are computed once and counted as often as there are layers.
    """
    import torch

    dtype = torch.bfloat16 if job.precision == "bfloat16" else torch.float32
    tokens, h = job.tokens, shape.hidden_size
    # (inputs, outputs, how often) of a layer
    layers = [(h, 3 * h), (h, h), (h, 4 * h), (4 * h, h)]
    counted = [(*layer, shape.num_layers) for layer in layers] + [(h, job.vocab_size, 1)]
    products: list[tuple[int, Callable[[], object]]] = []
    for inputs, outputs, count in counted:
        rows = torch.randn(tokens, inputs, dtype=dtype)
        weight = torch.randn(outputs, inputs, dtype=dtype)
        grad = torch.randn(tokens, outputs, dtype=dtype)
        operands = ((rows, weight.t()), (grad, weight), (grad.t(), rows))
        products += [
            (count, functools.partial(torch.mm, *pair, out=pair[0] @ pair[1])) for pair in operands
        ]
    return lambda clock: sum(count * seconds_of(product, clock) for count, product in products)


def our_side(shape_name: str, job: Job | None = None) -> Answers:
    """Answers of our process, which `train.py` would set up alike.

    `tools/benchmark/step_turns.py` gives only the shape, which is all that earlier versions take.
    """
    from megatron.runtime.initialize import shutdown

    join_process_group()
    # `end` keeps it: the data are read from it as long as the process lives
    folder = tempfile.TemporaryDirectory()
    run = our_run(SHAPES[shape_name], Path(folder.name), job or Job())
    step = step_of(run)

    def end() -> None:
        shutdown()
        folder.cleanup()

    return {
        **_answers(step),
        "profile": lambda: _profile(run, step),
        "end": end,
    }


def their_side(shape_name: str, job: Job, side: str) -> Answers:
    """Answers of a process with a plain loop."""
    step = their_step(SHAPES[shape_name], job, is_pure=side == "pure")
    profile = functools.partial(step_parts.seconds_by_part, step)
    return {**_answers(step), "profile": profile, "end": lambda: None}


def products_side(shape_name: str, job: Job) -> Answers:
    """Answers of the process that only multiplies, with the settings of ours."""
    from megatron.runtime import accelerator

    accelerator.prepare_environment()
    accelerator.keep_freed_memory()
    seconds = product_seconds(SHAPES[shape_name], job)
    requests = {request: functools.partial(seconds, clock) for request, clock in CLOCKS.items()}
    return {**requests, "end": lambda: None}


def _answers(step: Callable[[], None]) -> dict[str, Callable[..., Any]]:
    return {
        **{
            request: functools.partial(seconds_of, step, clock) for request, clock in CLOCKS.items()
        },
        "peak": lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _profile(run: Any, step: Callable[[], None]) -> dict[str, float]:
    """Seconds by part of our step, whose engine gets a range in the profile."""
    import torch

    engine = run.runner.engine
    for name in ("backward", "step"):
        method = torch.profiler.record_function(step_parts.OPTIMIZER_RANGE)(getattr(engine, name))
        setattr(engine, name, method)
    return step_parts.seconds_by_part(step)


def join_process_group() -> None:
    """Sets up the process as `train.py` does."""
    from megatron.neox_arguments import NeoXArgs, resolve
    from megatron.runtime.initialize import initialize_megatron

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


def measure(
    sides: Mapping[str, Side], requests: list[tuple[str, str]], steps: int
) -> list[list[float]]:
    """Seconds of each (side, request), which take turns.

    A turn is two steps, of which only the second counts: the first one finds the caches, and the
    memory of a virtual machine, as another side left them, unlike in training.
    """
    times: list[list[float]] = [[] for _ in requests]
    for number in range(WARMUP_TURNS + steps):
        for taken, (side, request) in zip(times, requests, strict=True):
            sides[side].ask(request)
            seconds = sides[side].ask(request)
            if number >= WARMUP_TURNS:
                taken.append(seconds)
    return times


def compare(name: str, job: Job, *, steps: int, request: str, profile: bool) -> None:
    """Prints the table of one case; ``request`` is one of `CLOCKS`."""
    sides = {
        side: Worker(our_side, name, job) if side == "ours" else Worker(their_side, name, job, side)
        for side in SIDES[job.precision]
    }
    sides["products"] = Worker(products_side, name, job)
    times = dict(
        zip(sides, measure(sides, [(side, request) for side in sides], steps), strict=True)
    )
    products = times.pop("products")
    print(
        f"{name}, {job.vocab_size} tokens of vocabulary, {job.precision}: batch {job.batch} x "
        f"{job.seq_length}" + (", by processor time" if request == "processor" else "")
    )
    for side, taken in times.items():
        print(
            f"  {side:<10}{job.tokens / statistics.median(taken):9.0f} tokens/s (median), "
            f"{job.tokens / min(taken):9.0f} (best), peak memory {sides[side].ask('peak'):.0f} MiB"
            + ("" if side == "ours" else f"; ratio {_ratio(taken, times['ours'])}")
        )
    flops = SHAPES[name].matrix_flops_per_token(job.vocab_size) * job.tokens
    print(
        f"  products alone {flops / statistics.median(products) / 1e9:4.0f} GFLOPS (median), "
        f"{flops / min(products) / 1e9:4.0f} (best); our step reaches "
        f"{_ratio(products, times['ours'])}",
        flush=True,
    )
    if profile:
        print(step_parts.table({side: sides[side].ask("profile") for side in times}))
    for worker in sides.values():
        worker.ask("end")
        worker.close()


def _ratio(numerator: list[float], denominator: list[float]) -> str:
    """Text: the median of the rounds' ratios, and that of the best rounds."""
    ratios = [a / b for a, b in zip(numerator, denominator, strict=True)]
    return (
        f"{statistics.median(ratios):.2f} (median of rounds), "
        f"{min(numerator) / min(denominator):.2f} (best against best)"
    )


def main() -> None:
    """Parses the command line and prints a table per case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--vocab-sizes", nargs="+", type=int, default=[VOCAB_SIZE])
    parser.add_argument("--precisions", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each side")
    parser.add_argument(
        "--processor-time", action="store_true", help="measure processor time, not elapsed time"
    )
    parser.add_argument("--profile", action="store_true", help="print where steps spend their time")
    args = parser.parse_args()
    request = "processor" if args.processor_time else "step"
    print(processor())
    for shape, vocab_size, precision in itertools.product(
        args.shapes, args.vocab_sizes, args.precisions
    ):
        job = Job(vocab_size=vocab_size, precision=precision)
        compare(shape, job, steps=args.steps, request=request, profile=args.profile)


if __name__ == "__main__":
    main()
