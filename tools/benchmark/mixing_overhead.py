#!/usr/bin/env python
"""What online data mixing itself costs per iteration, for few and for many domains.

Runs the project's training loop on the demo's model with a stop-watch around each part:

- plan: which domain and sample every slot reads (`MixtureController.draw`);
- record: per-domain sums of all micro-batches (`DomainLossRecorder.record`);
- reduce: packing, all-reduce and unpacking of these sums (`reduce_step`). There is one process, so
  the all-reduce does not communicate;
- observe: from the losses to the next weights (`MixtureController.observe`);
- log: the record of the iteration, formatted and appended to the run log, at every iteration. The
  lines of the console are made but not shown.

Recording is part of the loss with and without mixing. It is listed, but the verdict is about the
other four parts.

Each number of domains is measured in the loop, where the model has emptied the caches, and alone,
with the model left out. Exits with 1 when plan, reduce, observe and log take, in the loop with 10
domains, over 0.3 % of the step or over a millisecond.

    python -m tools.benchmark.mixing_overhead [--domains 10 100 1000] [--iterations 30]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
VOCAB_SIZE = 2048
REQUIRED_AT = 10
MAX_SHARE = 0.003
MAX_SECONDS = 1e-3
WARMUP_ITERATIONS = 3
JUDGED_PARTS = ("plan", "reduce", "observe", "log")
PARTS = ("plan", "record", "reduce", "observe", "log")


@dataclass(frozen=True)
class Costs:
    """Median seconds per iteration."""

    parts: dict[str, float]
    step: float

    @property
    def judged(self) -> float:
        """Plan, reduce, observe and log together."""
        return sum(self.parts[name] for name in JUDGED_PARTS)


class Stopwatch:
    """Seconds of each part, added up over an iteration."""

    def __init__(self) -> None:
        self._running = dict.fromkeys(PARTS, 0.0)
        self._laps: list[dict[str, float]] = []

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps ``function`` so that its time counts for ``part``."""

        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._running[part] += time.perf_counter() - start

        return call

    def lap(self, step_seconds: float) -> None:
        """Ends an iteration."""
        self._laps.append({**self._running, "step": step_seconds})
        self._running = dict.fromkeys(PARTS, 0.0)

    def costs(self, *, skip: int) -> Costs:
        """Medians, without the first ``skip`` iterations."""
        laps = self._laps[skip:]
        medians = {name: statistics.median(lap[name] for lap in laps) for name in laps[0]}
        return Costs({name: medians[name] for name in PARTS}, medians["step"])


class NamedData:
    """One data set under another name: a thousand domains need no thousand files."""

    def __init__(self, dataset: Any, name: str):
        self.name = name
        self.samples_per_epoch = dataset.samples_per_epoch
        self.seq_length = dataset.seq_length
        self.get_many = dataset.get_many


class LossOnlyRunner:
    """Stands in for the engine: records made-up losses of the planned domains, trains nothing."""

    loss_scale = None

    def __init__(self, num_domains: int, *, micro_batch_size: int, seq_length: int):
        import torch

        self._num_domains = num_domains
        self._nll = 3.0 + torch.rand(micro_batch_size, seq_length)
        self._mask = torch.ones_like(self._nll)

    def set_learning_rate(self, learning_rate: float) -> None:
        """Does nothing: there is no optimizer."""

    def train_step(self, draw: Any) -> Any:
        """Records all micro-batches of a plan."""
        import torch

        from megatron.engine.domain_sums import DomainLossRecorder
        from megatron.engine.runners import StepResult

        recorder = DomainLossRecorder(self._num_domains, self._nll.device)
        for domain_ids in torch.from_numpy(draw.domains).split(len(self._nll)):
            recorder.record(self._nll, self._mask, domain_ids)
        return StepResult(sums=recorder.sums(), grad_norm=1.0, skipped=False)


def demo_settings() -> dict[str, Any]:
    """The demo's model, optimizer and batch, without its mixing, folders and checkpoints."""
    import yaml

    settings = yaml.safe_load((ROOT / "configs" / "demo.yml").read_text(encoding="utf-8"))
    left_out = ("data_sampling_", "mixed_", "save", "load", "checkpoint_", "keep_last_")
    return {key: value for key, value in settings.items() if not key.startswith(left_out)}


def mixed_source(run: Any, num_domains: int) -> tuple[Any, Any]:
    """Data of ``num_domains`` domains that all read one data set of ``run``, and their mixture."""
    from megatron.data.mixed_batches import MixedBatches
    from odm import MixtureController, MixtureSchedule

    names = [f"domain_{k:04d}" for k in range(num_domains)]
    dataset = run.source._datasets[0]
    source = MixedBatches(
        [NamedData(dataset, name) for name in names],
        dp_rank=0,
        dp_size=1,
        micro_batch_size=run.config.batch.micro_batch_size,
        gradient_accumulation_steps=run.config.batch.gradient_accumulation_steps,
        eod_token=0,
        vocab_size=VOCAB_SIZE,
    )
    return source, MixtureController(names, "smoothed_mean", MixtureSchedule(1, num_domains))


@contextmanager
def stopped_parts(watch: Stopwatch, mixture: Any, hook: Any) -> Iterator[None]:
    """Puts the stop-watch around the parts of the loop, until the context ends."""
    from megatron import training
    from megatron.engine.domain_sums import DomainLossRecorder

    with (
        mock.patch.object(mixture, "draw", watch.timed("plan", mixture.draw)),
        mock.patch.object(
            DomainLossRecorder, "record", watch.timed("record", DomainLossRecorder.record)
        ),
        mock.patch.object(training, "reduce_step", watch.timed("reduce", training.reduce_step)),
        mock.patch.object(mixture, "observe", watch.timed("observe", mixture.observe)),
        mock.patch.object(hook, "after_step", watch.timed("log", hook.after_step)),
    ):
        yield


def measure(run: Any, num_domains: int, *, iterations: int, with_model: bool) -> Costs:
    """Times the loop over ``num_domains`` domains, all of which read the data of ``run``."""
    from megatron.engine.state import TrainState
    from megatron.hooks.base import Hook
    from megatron.hooks.logging import LoggingHook
    from megatron.reporting.run_logger import RunLogger
    from megatron.reporting.writers import ConsoleWriter
    from megatron.training import train

    source, mixture = mixed_source(run, num_domains)
    runner = run.runner
    if with_model:
        runner.num_domains = num_domains
    else:
        source.batches = lambda draw: draw
        runner = LossOnlyRunner(
            num_domains,
            micro_batch_size=run.config.batch.micro_batch_size,
            seq_length=source.seq_length,
        )
    watch = Stopwatch()

    class Lap(Hook):
        def after_step(self, state: Any, report: Any) -> None:
            watch.lap(report.seconds)

    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        logger = RunLogger(run.config, 0, console=ConsoleWriter(nowhere))
        hook = LoggingHook(logger, source, mixture, interval=1)
        measured = replace(run, source=source, mixture=mixture, runner=runner, state=TrainState())
        with stopped_parts(watch, mixture, hook):
            train(
                hooks=[hook, Lap()],
                last_step=WARMUP_ITERATIONS + iterations,
                **measured.loop_arguments(),
            )
    return watch.costs(skip=WARMUP_ITERATIONS)


def table(costs: Mapping[int, Costs], *, step_seconds: float | None = None) -> str:
    """One line per number of domains: microseconds per iteration, and shares of the step.

    Args:
        costs: Number of domains -> medians.
        step_seconds: The step that shares refer to; None for that of each line.
    """
    lines = ["domains" + "".join(f"{name:>9}" for name in PARTS) + "   judged  % of the step"]
    for num_domains, cost in costs.items():
        share = cost.judged / (step_seconds or cost.step)
        lines.append(
            f"{num_domains:7d}"
            + "".join(f"{cost.parts[name] * 1e6:9.0f}" for name in PARTS)
            + f"{cost.judged * 1e6:9.0f}{share:14.3%}"
        )
    return "\n".join(lines)


def verdict(cost: Costs) -> tuple[bool, str]:
    """Returns whether the requirement holds for ``cost``, and the sentence that reports it."""
    share = cost.judged / cost.step
    holds = share <= MAX_SHARE and cost.judged < MAX_SECONDS
    return holds, (
        f"{'PASS' if holds else 'MISSED'}: {' + '.join(JUDGED_PARTS)} at {REQUIRED_AT} domains: "
        f"{cost.judged * 1e6:.0f} us (below {MAX_SECONDS * 1e6:.0f} asked for), "
        f"{share:.3%} of a step of {cost.step * 1e3:.1f} ms (at most {MAX_SHARE:.1%} asked for)"
    )


def run_benchmark(domains: Sequence[int], *, iterations: int, iterations_alone: int) -> bool:
    """Prints both tables and the verdict; returns whether the requirement holds."""
    from megatron.neox_arguments import NeoXArgs, resolve
    from megatron.runtime.initialize import initialize_megatron, shutdown
    from tools.benchmark.synthetic_run import make_run

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = {**demo_settings(), "log_dir": str(folder / "logs")}
        initialize_megatron(
            resolve(NeoXArgs.from_dict(settings), world_size=1), handle_signals=False
        )
        try:
            run = make_run(folder, vocab_size=VOCAB_SIZE, num_domains=2, settings=settings)
            in_loop = {k: measure(run, k, iterations=iterations, with_model=True) for k in domains}
            alone = {
                k: measure(run, k, iterations=iterations_alone, with_model=False) for k in domains
            }
        finally:
            shutdown()
    step = in_loop[REQUIRED_AT].step
    print("microseconds per iteration, medians; one process, so the all-reduce is not in it")
    print(f"in the loop of the demo's model ({iterations} iterations, step {step * 1e3:.1f} ms)")
    print(table(in_loop))
    print(f"alone, caches warm ({iterations_alone} iterations; share of the same step)")
    print(table(alone, step_seconds=step))
    holds, sentence = verdict(in_loop[REQUIRED_AT])
    print(sentence)
    return holds


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--domains",
        nargs="+",
        type=int,
        default=[10, 100, 1000],
        help=f"numbers of domains; {REQUIRED_AT}, which the verdict is about, is always measured",
    )
    parser.add_argument("--iterations", type=int, default=30, help="timed iterations in the loop")
    parser.add_argument("--iterations-alone", type=int, default=500)
    args = parser.parse_args(argv)
    if min(args.domains) < 2 or min(args.iterations, args.iterations_alone) < 1:
        parser.error("--domains must be at least 2, --iterations and --iterations-alone at least 1")
    return args


def main() -> int:
    """Measures and judges."""
    args = parse_arguments()
    holds = run_benchmark(
        sorted({REQUIRED_AT, *args.domains}),
        iterations=args.iterations,
        iterations_alone=args.iterations_alone,
    )
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
