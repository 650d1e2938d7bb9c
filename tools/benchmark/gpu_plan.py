#!/usr/bin/env python
"""What a training step would cost on a GPU: kernels, bytes, arithmetic, roofline. Needs no GPU.

Runs one step of a configuration on torch's ``meta`` device, with the modules of a run, and writes
down every operation. A kernel takes as long as its arithmetic at the GPU's peak or its bytes at the
GPU's bandwidth, whichever is longer; the sum of these times is the least that the step can take if
nothing overlaps and no launch is waited for. MFU is the model's arithmetic (causal attention
counted half, nothing that is computed again) in that time, as a share of the peak.

Each table has two halves: *eager*, kernel by kernel as torch launches them, and *fused*, by the
model of a compiler in `tools.benchmark.planning.fusion`. Neither is a measurement. One rank is
planned, without communication, and whether its memory is large enough is not checked (see
``./deepy.py train.py ... --dry-run``).

    python -m tools.benchmark.gpu_plan [--shape 160M 1.4B 20B | --config FILE ...] [--gpu H100]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SHAPES = {
    **{size: f"pythia/{size.replace('.', '-')}.yml" for size in ("14M", "70M", "160M", "410M")},
    **{size: f"pythia/{size.replace('.', '-')}.yml" for size in ("1B", "1.4B", "2.8B", "6.9B")},
    **{"12B": "pythia/12B.yml", "20B": "20B.yml"},
}
"""Name -> file in configs/."""
VOCAB_SIZE = 50277
"""Tokens of GPT-NeoX's tokenizer."""
NUM_DOMAINS = 22
_NOT_PLANNED = {
    *("config_files", "train_batch_size", "fp16", "bf16", "precision", "zero_optimization"),
    *("model_parallel_size", "pipe_parallel_size", "gradient_accumulation_steps"),
}
"""Keys of a file that do not matter: one rank is planned, in a precision of the command line."""


@dataclass(frozen=True)
class Costs:
    """A list of kernels on a GPU."""

    kernels: int
    nbytes: int
    flops: float
    seconds: float
    mfu: float
    logits_passes: float
    """How often a chunk's logits are read or written, counted in float32 copies of them."""
    by_role: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Plan:
    """A step of a shape."""

    shape: str
    gpu: str
    precision: str
    micro_batch: int
    accumulation: int
    seq_length: int
    recompute: bool
    tokens: int
    parameters: int
    model_flops: float
    eager: Costs
    fused: Costs


def resolved_config(files: Sequence[str], args: argparse.Namespace) -> Any:
    """The configuration of ``files`` on one process, with the changes of the command line."""
    from megatron.neox_arguments import NeoXArgs, resolve

    written = NeoXArgs.from_ymls(list(files))
    values = {key: getattr(written, key) for key in written.given - _NOT_PLANNED}
    values["precision"] = args.precision
    values["gradient_accumulation_steps"] = args.accumulation
    if args.micro_batch is not None:
        values["train_micro_batch_size_per_gpu"] = args.micro_batch
    if args.recompute is not None:
        values["checkpoint_activations"] = args.recompute
    return resolve(NeoXArgs.from_dict(values), world_size=1)


def record_step(config: Any, *, vocab_size: int) -> tuple[list[Any], int]:
    """The kernels of a step, and the number of parameters."""
    from tools.benchmark.meta_step import MetaStep, meta_batch, meta_kernels
    from tools.benchmark.planning.recorder import recording

    step = MetaStep(config, vocab_size=vocab_size, num_domains=NUM_DOMAINS)
    batches = [meta_batch(config)] * config.batch.gradient_accumulation_steps
    with meta_kernels(), recording(step.model) as recorder:
        step.run(batches, recorder.role)  # the first step makes tables and moments
        recorder.kernels.clear()
        step.run(batches, recorder.role)
    return recorder.kernels, sum(p.numel() for p in step.model.parameters())


def costs_of(kernels: Sequence[Any], gpu: Any, *, config: Any, vocab_size: int) -> Costs:
    """Sums of a list of kernels."""
    from megatron.sizing.loss_chunks import chunk_tokens
    from tools.benchmark.planning.fusion import passes_over
    from tools.benchmark.planning.recorder import ROLES

    peak, bandwidth = gpu.peak(config.precision.dtype), gpu.bandwidth
    by_role: dict[str, dict[str, float]] = {}
    for role in ROLES:
        own = [kernel for kernel in kernels if kernel.role == role]
        if own:
            by_role[role] = {
                "kernels": sum(k.launches for k in own),
                "nbytes": sum(k.nbytes for k in own),
                "flops": sum(k.flops for k in own),
                "seconds": sum(k.seconds(peak=peak, bandwidth=bandwidth) for k in own),
            }
    total = {
        name: sum(row[name] for row in by_role.values())
        for name in ("kernels", "nbytes", "flops", "seconds")
    }
    model_flops = sum(kernel.model_flops for kernel in kernels if not kernel.is_repeated)
    tokens = config.batch.micro_batch_size * config.data.seq_length
    divisor = config.model.make_vocab_size_divisible_by
    chunk = min(tokens, chunk_tokens(-(-vocab_size // divisor) * divisor, "gpu"))
    chunks = -(-tokens // chunk) * config.batch.gradient_accumulation_steps
    return Costs(
        kernels=int(total["kernels"]),
        nbytes=int(total["nbytes"]),
        flops=total["flops"],
        seconds=total["seconds"],
        mfu=model_flops / total["seconds"] / peak,
        logits_passes=passes_over(kernels, rows=chunk, width=vocab_size) / chunks,
        by_role=by_role,
    )


def make_plan(name: str, config: Any, gpu: Any, *, vocab_size: int = VOCAB_SIZE) -> Plan:
    """Records a step and adds it up, eager and fused."""
    from tools.benchmark.planning.fusion import fused

    kernels, parameters = record_step(config, vocab_size=vocab_size)
    eager, joined = (
        costs_of(found, gpu, config=config, vocab_size=vocab_size)
        for found in (kernels, fused(kernels))
    )
    batch = config.batch
    return Plan(
        shape=name,
        gpu=gpu.name,
        precision=config.precision.dtype,
        micro_batch=batch.micro_batch_size,
        accumulation=batch.gradient_accumulation_steps,
        seq_length=config.data.seq_length,
        recompute=config.model.checkpoint_num_layers > 0,
        tokens=batch.train_batch_size * config.data.seq_length,
        parameters=parameters,
        model_flops=sum(k.model_flops for k in kernels if not k.is_repeated),
        eager=eager,
        fused=joined,
    )


def table(plan: Plan) -> str:
    """The plan as text."""
    recompute = "activations computed again" if plan.recompute else "activations kept"
    lines = [
        f"{plan.shape}: {plan.parameters / 1e6:,.0f} M parameters, {plan.accumulation} x "
        f"{plan.micro_batch} x {plan.seq_length} tokens, {plan.precision}, {recompute}, {plan.gpu}",
        f"{'':20}{'eager':>9}{'':27}{'fused':>9}",
        f"{'':20}" + f"{'kernels':>9}{'GB':>9}{'TFLOP':>9}{'ms':>9}" * 2,
    ]
    sides = (plan.eager, plan.fused)
    rows: dict[str, list[dict[str, float]]] = {
        role: [side.by_role.get(role, {}) for side in sides] for role in plan.eager.by_role
    }
    rows["all"] = [dict(vars(side)) for side in sides]
    for role, halves in rows.items():
        cells = (
            f"{half.get('kernels', 0):9.0f}{half.get('nbytes', 0) / 1e9:9.2f}"
            f"{half.get('flops', 0) / 1e12:9.2f}{half.get('seconds', 0) * 1e3:9.2f}"
            for half in halves
        )
        lines.append(f"{role:20}{''.join(cells)}")
    for name, side in (("eager", plan.eager), ("fused", plan.fused)):
        lines.append(
            f"{name}: at most {plan.tokens / side.seconds:,.0f} tokens/s, MFU {side.mfu:.1%}; a "
            f"chunk's logits are read or written {side.logits_passes:.1f} times (float32 copies)"
        )
    return "\n".join(lines)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    from megatron.sizing.gpus import GPUS

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--shape", nargs="+", choices=SHAPES, default=["160M", "410M", "1.4B"])
    what.add_argument("--config", nargs="+", help="configuration files of one run")
    parser.add_argument("--gpu", choices=GPUS, default="H100")
    parser.add_argument("--precision", choices=("bfloat16", "fp16", "fp32"), default="bfloat16")
    parser.add_argument("--micro-batch", type=int, help="samples; not given: of the configuration")
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches of a step")
    again = parser.add_mutually_exclusive_group()
    for flag, wanted, what_for in (
        ("--recompute", True, "compute activations again; not given: as the configuration does"),
        ("--no-recompute", False, "keep all activations"),
    ):
        again.add_argument(
            flag, dest="recompute", action="store_const", const=wanted, help=what_for
        )
    parser.add_argument("--json", metavar="FILE", help="write all figures to a file")
    args = parser.parse_args(argv)
    if args.accumulation < 1 or (args.micro_batch or 1) < 1:
        parser.error("--micro-batch and --accumulation must be at least 1")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a plan per shape."""
    import logging

    from megatron.runtime import accelerator

    accelerator.prepare_environment()
    logging.disable(logging.WARNING)
    from dataclasses import asdict

    from megatron.neox_arguments import ConfigError
    from megatron.sizing.gpus import GPUS

    args = parse_arguments(argv)
    runs = (
        {"+".join(Path(file).stem for file in args.config): args.config}
        if args.config
        else {name: [str(ROOT / "configs" / SHAPES[name])] for name in args.shape}
    )
    plans = []
    for name, files in runs.items():
        try:
            config = resolved_config(files, args)
        except ConfigError as error:
            print(error, file=sys.stderr)
            return 2
        plans.append(make_plan(name, config, GPUS[args.gpu]))
        print(table(plans[-1]), flush=True)
    if args.json:
        text = json.dumps([asdict(plan) for plan in plans], indent=1)
        Path(args.json).write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
