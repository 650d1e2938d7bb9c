#!/usr/bin/env python
"""Step time of two versions of this program, which take turns in one run.

    python -m tools.benchmark.step_turns FIRST [SECOND] [--shapes 14M 70M] [--vocab-size 50304]
        [--precision fp32] [--steps 8] [--processor-time]

FIRST and SECOND are commits or folders with a checkout; SECOND is this folder if it is left out.
Each version trains in a process of its own, as `step_throughput` of that version does, and waits
while the other one runs, so that a busy machine slows both alike. Prints the seconds of a step and
the ratio of both. Without a difference the median of the turns' ratios is 1 up to their spread.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tools.benchmark.step_throughput import SHAPES, SIDES, Job, measure

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import os, sys, time
import megatron
from tools.benchmark import step_throughput

assert os.path.realpath(megatron.__file__).startswith(os.path.realpath(os.getcwd()) + os.sep)
shape, *settings = sys.argv[1:]
job = []
if settings:
    job = [step_throughput.Job(vocab_size=int(settings[0]), precision=settings[1])]
answers = step_throughput.our_side(shape, *job)
for line in sys.stdin:
    request, start = line.strip(), time.process_time()
    answer = answers["step" if request == "processor" else request]()
    if request == "processor":
        answer = time.process_time() - start
    sys.stdout.write(f"ANSWER {answer}\\n")
    sys.stdout.flush()
"""
"""Runs in each checkout: a request per line, and its answer. Earlier versions have no Job."""


class Version:
    """A version's training run in a process of its own."""

    def __init__(self, checkout: Path, shape: str, job: Job):
        self._checkout = checkout
        settings = [] if job == Job() else [str(job.vocab_size), job.precision]
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, shape, *settings],
            cwd=checkout,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, request: str) -> float:
        """Waits for the answer; ends this program if the other one failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended; its exit code follows
            self._process.stdin.write(f"{request}\n")
            self._process.stdin.flush()
        for line in self._process.stdout:
            kind, _, value = line.partition(" ")
            if kind == "ANSWER":
                return 0.0 if request == "end" else float(value)
        raise SystemExit(f"{self._checkout}: its process ended with {self._process.wait()}")

    def close(self) -> None:
        """Ends the process."""
        self.ask("end")
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def checkout_of(version: str, folder: Path) -> Path:
    """The folder with a version; a commit's files are written to ``folder``."""
    if Path(version).is_dir():
        return Path(version).absolute()
    command = ["git", "archive", "--format=tar", version]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(f"{version}: is no folder and no commit: {done.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def report(shape: str, first: list[float], second: list[float]) -> str:
    """The seconds of a step in each version, and the ratios of the turns."""
    ratios = sorted(b / a for a, b in zip(first, second, strict=True))
    lines = [f"{shape}: {len(ratios)} turns"]
    for name, seconds in (("first", first), ("second", second)):
        median, best = statistics.median(seconds), min(seconds)
        lines.append(f"  {name:<7}{median * 1e3:9.1f} ms (median), {best * 1e3:9.1f} ms (best)")
    lines.append(
        f"  second / first: {statistics.median(ratios):.3f} (median of turns, "
        f"{ratios[0]:.3f} to {ratios[-1]:.3f}), {min(second) / min(first):.3f} (best against best)"
    )
    return "\n".join(lines)


def compare(
    shape: str,
    checkouts: tuple[Path, Path],
    *,
    steps: int,
    job: Job | None = None,
    request: str = "step",
) -> str:
    """Lets both versions train in turns; returns the `report`.

    ``request`` is ``processor`` for processor time, of which a busy machine takes no more.
    """
    versions = (Version(checkout, shape, job or Job()) for checkout in checkouts)
    sides = dict(zip(("first", "second"), versions, strict=True))
    first, second = measure(sides, [(side, request) for side in sides], steps)
    for side in sides.values():
        side.close()
    return report(shape, first, second)


def main() -> None:
    """Parses the command line and prints a table per shape."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("first", help="commit, or folder with a checkout")
    parser.add_argument("second", nargs="?", default=str(ROOT), help="default: this folder")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--vocab-size", type=int, default=Job.vocab_size)
    parser.add_argument("--precision", choices=SIDES, default=Job.precision)
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each version")
    parser.add_argument(
        "--processor-time", action="store_true", help="measure processor time, not elapsed time"
    )
    args = parser.parse_args()
    job = Job(vocab_size=args.vocab_size, precision=args.precision)
    request = "processor" if args.processor_time else "step"
    with tempfile.TemporaryDirectory() as name:
        checkouts = (
            checkout_of(args.first, Path(name) / "first"),
            checkout_of(args.second, Path(name) / "second"),
        )
        for shape in args.shapes:
            print(compare(shape, checkouts, steps=args.steps, job=job, request=request), flush=True)


if __name__ == "__main__":
    main()
