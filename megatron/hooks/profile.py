"""Traces a few iterations with torch's profiler, and records the allocations of a GPU's memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from megatron.engine.state import TrainState
from megatron.hooks.base import Hook, StepReport
from megatron.neox_arguments import RunConfig
from megatron.runtime import accelerator

__all__ = ["ProfileHook", "profile_hooks"]

_MOST_ALLOCATIONS = 100_000


def profile_hooks(config: RunConfig, rank: int, say: Callable[[str], None]) -> list[Hook]:
    """The hook that `profile` and `memory_profiling` ask for on this rank; none on others."""
    logging = config.logging
    if rank != 0 or not (logging.profile or logging.memory_profiling):
        return []
    folder = logging.tensorboard_dir or logging.log_dir
    traces = None if folder is None else Path(folder, "profile")
    memory = None
    if logging.memory_profiling and not accelerator.records_allocations():
        say("memory_profiling: no effect, since only allocations of GPUs are recorded")
    elif logging.memory_profiling:
        memory = Path(logging.memory_profiling_path) if logging.memory_profiling_path else traces
    if not logging.profile and memory is None:
        return []
    steps = logging.profile_step_start, logging.profile_step_stop
    return [ProfileHook(steps, traces if logging.profile else None, memory, say)]


class ProfileHook(Hook):
    """Profiles from the first to the last of the given iterations, both included.

    A run that ends earlier writes what it has seen. A file that cannot be written is a message, and
    training continues.

    Args:
        steps: First and last iteration.
        traces: Folder of the trace; None: no trace.
        memory: Folder of the memory snapshot; None: none.
        say: Prints a message for the user.
    """

    def __init__(
        self,
        steps: tuple[int, int],
        traces: Path | None,
        memory: Path | None,
        say: Callable[[str], None],
    ):
        self._first, self._last = steps
        self._traces = traces
        self._memory = memory
        self._say = say
        self._began: int | None = None
        self._profiler: torch.profiler.profile | None = None

    def before_step(self, step: int) -> None:
        if self._began is not None or not self._first <= step <= self._last:
            return
        self._began = step
        if self._memory is not None:
            accelerator.start_recording_allocations(_MOST_ALLOCATIONS)
        if self._traces is not None:
            self._profiler = torch.profiler.profile(record_shapes=True, profile_memory=True)
            self._profiler.start()

    def after_step(self, state: TrainState, report: StepReport) -> None:
        if state.step >= self._last or state.stop:
            self._finish(state.step)

    def at_end(self, state: TrainState) -> None:
        self._finish(state.step)

    def _finish(self, step: int) -> None:
        if self._began is None or self._began > self._last:
            return
        name = f"iterations_{self._began}_to_{step}"
        self._began = self._last + 1  # not again
        if self._profiler is not None:
            self._profiler.stop()
            assert self._traces is not None
            self._write(
                "profile", self._traces / f"{name}.json", self._profiler.export_chrome_trace
            )
            self._profiler = None
        if self._memory is not None:
            path = self._memory / f"memory_{name}.pickle"
            self._write("memory_profiling", path, accelerator.write_allocations)

    def _write(self, key: str, path: Path, write: Callable[[str], object]) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(str(path))
        except (OSError, RuntimeError) as error:
            self._say(f"{key}: {path} cannot be written ({error}); training continues")
        else:
            self._say(f"{key}: wrote {path}")
