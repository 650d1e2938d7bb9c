#!/usr/bin/env python
"""All measurements of a GPU in one command of at most eight minutes.

Runs ``tests/gpu``, then for 1.4B, 410M and 160M (2,048 tokens, bf16): our step, eager and compiled,
beside a plain loop over transformers' GPT-NeoX and the same loop compiled; each in a process of its
own. Then the cost of mixing 22 domains and the time of a checkpoint. Theirs computes under
autocast with float32 weights. Writes ``gpu-<name>.json`` and a table, ``gpu-<name>.md``. What this
machine lacks, what fails and what there was no time for is listed, and the rest is measured.

    python -m tools.benchmark.gpu_session [--output docs/results] [--carry FOLDER] [--dry]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tools.benchmark import gpu_carry

ROOT = Path(__file__).resolve().parents[2]
SHAPES = {"1.4B": (24, 2048, 16), "410M": (24, 1024, 16), "160M": (12, 768, 12)}
BATCHES = {"1.4B": 8, "410M": 16, "160M": 32}
SIDES: dict[str, dict[str, Any]] = {
    "ours, compiled": {"side": "ours", "compiled": True},
    "transformers": {"side": "theirs", "compiled": False},
    "transformers, compiled": {"side": "theirs", "compiled": True},
    "ours": {"side": "ours", "compiled": False, "extras": True},
}


@dataclass(frozen=True)
class Scale:
    """What is measured: a GPU's shapes, or tiny ones."""

    shapes: dict[str, tuple[int, int, int]]
    batches: dict[str, int]
    seq_length: int
    vocab_size: int
    device: str
    steps: int
    warmup: int
    seconds: float
    """Length of the whole session."""
    longest: float
    """Seconds that `tests/gpu`, or one measurement, may take."""


FULL = Scale(SHAPES, BATCHES, 2048, 50304, "gpu", steps=10, warmup=3, seconds=480, longest=100)
# a busy machine compiles for minutes
DRY = Scale(
    shapes={"tiny": (2, 64, 4)},
    batches={"tiny": 2},
    seq_length=32,
    vocab_size=512,
    device="cpu",
    steps=2,
    warmup=0,
    seconds=2400,
    longest=900,
)


@dataclass
class Report:
    """Everything that was found out."""

    device: str
    peak_flops: float | None
    versions: dict[str, str]
    results: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """Shape -> side -> figures."""
    tests: str = ""
    missing: list[str] = field(default_factory=list)
    """What was not measured, and why."""
    seconds: float = 0.0


Execute = Callable[[Sequence[str], float], tuple[int, str]]
"""Runs a command for at most so many seconds; returns its exit code and what it printed."""


def execute(command: Sequence[str], timeout_s: float) -> tuple[int, str]:
    """Runs a command of this Python; 124 if the time was not enough, and the process is ended."""
    try:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 124, f"not finished after {timeout_s:.0f} s"
    return done.returncode, done.stdout if done.returncode == 0 else done.stderr or done.stdout


def run_session(
    scale: Scale, report: Report, *, run: Execute = execute, clock: Callable[[], float] = time.time
) -> Report:
    """Measures until everything is done or the time is up."""
    began = clock()

    def left() -> float:
        return scale.seconds - (clock() - began)

    code, text = run(
        ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu"], min(scale.longest, left())
    )
    report.tests = _last_line(text)
    if code != 0:
        report.missing.append(f"tests/gpu: {report.tests}")
    for name in scale.shapes:
        for side, how in SIDES.items():
            problem = _obstacle(how, scale.device)
            if problem is None and left() < 20:
                problem = "no time was left"
            if problem is not None:
                report.missing.append(f"{name}, {side}: {problem}")
                continue
            command = ["-m", "tools.benchmark.gpu_sides", json.dumps(_task(name, how, scale))]
            code, text = run(command, min(scale.longest, left()))
            if code != 0:
                report.missing.append(f"{name}, {side}: {_reason(text)}")
                continue
            figures = json.loads(_last_line(text))
            rate = figures["tokens_per_second"] * figures["flops_per_token"]
            figures["mfu"] = rate / report.peak_flops if report.peak_flops else None
            report.results.setdefault(name, {})[side] = figures
            print(f"{name}, {side}: {figures['tokens_per_second']:,.0f} tokens/s", flush=True)
    report.seconds = clock() - began
    return report


def _task(name: str, how: dict[str, Any], scale: Scale) -> dict[str, Any]:
    return {
        "side": how["side"],
        "shape": scale.shapes[name],
        "extras": bool(how.get("extras")),
        "steps": scale.steps,
        "warmup": scale.warmup,
        "job": {
            "batch": scale.batches[name],
            "seq_length": scale.seq_length,
            "vocab_size": scale.vocab_size,
            "device": scale.device,
            "precision": "bfloat16",
            "compiled": how["compiled"],
        },
    }


def _obstacle(how: dict[str, Any], device: str) -> str | None:
    """What this machine lacks for a side."""
    from megatron.model.compiling import compiler_problem

    if how["side"] == "theirs" and importlib.util.find_spec("transformers") is None:
        return "transformers is not installed"
    return compiler_problem(device) if how["compiled"] else None


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def _reason(text: str) -> str:
    """The last line that names an error: a compiler prints its warnings after it."""
    errors = [line for line in text.splitlines() if re.search(r"Error\b|\berror:", line)]
    return _last_line("\n".join(errors) or text)


def markdown(report: Report) -> str:
    """The report as a page."""
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    peak = f"{report.peak_flops / 1e12:.0f} TFLOPS" if report.peak_flops else "unknown"
    lines = [
        f"# {report.device}",
        "",
        f"Printed by `python -m tools.benchmark.gpu_session` in {report.seconds:.0f} s, with "
        f"{versions}. bf16; peak {peak}; MFU counts causal attention half. Ours is the whole "
        "iteration of `train.py`, with plan, engine, losses per domain and update of the mixture; "
        "the others are forward, backward, clipping and AdamW on a batch that is ready.",
        "",
        "| shape | loop | tokens/s | MFU | peak memory (GB) | step (ms) | first step (s) |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for shape, sides in report.results.items():
        for side, figures in sides.items():
            share = "" if figures["mfu"] is None else f"{figures['mfu']:.1%}"
            lines.append(
                f"| {shape} | {side} | {figures['tokens_per_second']:,.0f} | {share} | "
                f"{figures['peak_memory_bytes'] / 1e9:.1f} | {figures['step_seconds'] * 1e3:.1f} | "
                f"{figures['first_step_seconds']:.1f} |"
            )
    lines += ["", *_extras(report), f"Tests in `tests/gpu`: {report.tests}.", ""]
    if report.missing:
        lines += ["Not measured:", *(f"- {reason}" for reason in report.missing), ""]
    return "\n".join(lines)


def _extras(report: Report) -> list[str]:
    lines = []
    for shape, sides in report.results.items():
        for figures in sides.values():
            if "checkpoint" not in figures:
                continue
            saved, share = figures["checkpoint"], figures["mixing_seconds"]
            fastest = min(f["step_seconds"] for n, f in sides.items() if n.startswith("ours"))
            lines.append(
                f"- {shape}: mixing 22 domains takes {share * 1e6:.0f} us per step on the host, "
                f"{share / fastest:.3%} of our fastest step; a checkpoint of "
                f"{saved['nbytes'] / 1e9:.2f} GB takes {saved['seconds']:.1f} s."
            )
    return [*lines, ""] if lines else []


def describe_machine(scale: Scale) -> Report:
    """A report without results, of the device that is measured."""
    import deepspeed
    import torch

    from megatron.runtime import accelerator
    from megatron.sizing.gpus import gpu_of_device

    versions = {"torch": str(torch.__version__), "deepspeed": str(deepspeed.__version__)}
    if scale.device == "cpu":
        return Report(f"CPU, dry run ({platform.machine()})", None, versions)
    device = accelerator.device_name()
    gpu = gpu_of_device(device)
    report = Report(device, None if gpu is None else gpu.peak("bfloat16"), versions)
    if gpu is None:
        report.missing.append(f"MFU: {device} is not in megatron/sizing/gpus.py")
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and writes both files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", help="folder; not given: docs/results, or ./gpu_dry with --dry")
    parser.add_argument("--dry", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--carry", type=Path, help="folder of tools.benchmark.gpu_carry")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="gpu-session-") as target:
        if args.carry is not None:
            try:
                installed = gpu_carry.install_missing(args.carry, Path(target))
            except ValueError as error:
                print(f"gpu_session: {error}", file=sys.stderr)
                return 2
            print(f"from {args.carry}: {', '.join(installed) or 'nothing is missing'}", flush=True)
        return _measure(args)


def _measure(args: argparse.Namespace) -> int:
    lacking = [name for name in ("torch", "deepspeed") if importlib.util.find_spec(name) is None]
    if lacking:
        print(
            f"gpu_session: {lacking[0]} is not installed; pack a folder with python -m "
            "tools.benchmark.gpu_carry elsewhere, and add --carry FOLDER here",
            file=sys.stderr,
        )
        return 2
    from megatron.files import write_text_atomic
    from megatron.runtime import accelerator

    accelerator.prepare_environment()
    if not args.dry and accelerator.is_cpu():
        print("gpu_session: no GPU that torch can use; try --dry", file=sys.stderr)
        return 2
    scale = DRY if args.dry else FULL
    report = run_session(scale, describe_machine(scale))
    folder = Path(args.output or ("gpu_dry" if args.dry else ROOT / "docs/results"))
    folder.mkdir(parents=True, exist_ok=True)
    words = "cpu-dry" if args.dry else re.sub(r"[^a-z0-9]+", "-", report.device.lower()).strip("-")
    write_text_atomic(folder / f"gpu-{words}.json", json.dumps(asdict(report), indent=1) + "\n")
    write_text_atomic(folder / f"gpu-{words}.md", markdown(report))
    print(markdown(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
