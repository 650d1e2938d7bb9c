"""When a training run evaluates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from megatron.engine.state import TrainState
from megatron.hooks.base import Hook, StepReport

__all__ = ["PeriodicEvaluation", "is_due"]


def is_due(step: int, interval: int) -> bool:
    """Whether an evaluation every ``interval`` steps comes after this one."""
    return step > 0 and step % interval == 0


class PeriodicEvaluation(Hook, ABC):
    """Evaluates every ``interval`` steps and at the end, unless the run was asked to stop.

    ``measured`` contains the evaluations of the loaded iteration that `measured_at` found. One that
    is due there and missing was lost when the run was killed or stopped after it had saved, and is
    made first; without a run log (None) nothing can be missing in it.
    """

    def __init__(self, *, interval: int, measured: Mapping[str, Mapping[str, Any]] | None):
        self.interval = interval
        self.measured = measured
        self._last_evaluated = -1

    @abstractmethod
    def is_measured(self, state: TrainState) -> bool:
        """Whether ``measured`` contains what an evaluation of this iteration would measure."""

    @abstractmethod
    def evaluate(self, state: TrainState) -> None:
        """Evaluates; sets ``state.stop`` if a request to stop ended that."""

    def at_start(self, state: TrainState) -> None:
        if is_due(state.step, self.interval) and self.measured is not None:
            if not self.is_measured(state):
                self._evaluate_once(state)

    def after_step(self, state: TrainState, report: StepReport) -> None:
        if is_due(state.step, self.interval):
            self._evaluate_once(state)

    def at_end(self, state: TrainState) -> None:
        self._evaluate_once(state)

    def _evaluate_once(self, state: TrainState) -> None:
        if not state.stop and state.step != self._last_evaluated:
            self._last_evaluated = state.step
            self.evaluate(state)
