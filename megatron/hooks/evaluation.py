"""Evaluates during and after training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron.data.evaluation_batches import EvaluationBatches
from megatron.engine.runners import StepRunner, any_rank_asked_to_stop
from megatron.engine.state import TrainState
from megatron.errors import EvaluationStopped
from megatron.evaluation.losses import averages, evaluate_domains
from megatron.hooks.base import Hook, StepReport
from megatron.reporting.run_logger import RunLogger

__all__ = ["EvaluationHook"]


class EvaluationHook(Hook):
    """Evaluates validation sets every ``interval`` steps and at the end, test sets at the end.

    A request to stop ends an evaluation between two batches, without results. ``measured`` contains
    the evaluations of the loaded iteration that `measured_at` found. They are not repeated on the
    same samples. One that is due there and missing was lost when the run was killed or stopped
    after it had saved, and is made first; without a run log (None) nothing can be missing in it.
    """

    def __init__(
        self,
        runner: StepRunner,
        logger: RunLogger,
        *,
        validation: EvaluationBatches | None,
        test: EvaluationBatches | None,
        interval: int,
        measured: Mapping[str, Mapping[str, Any]] | None = None,
    ):
        self.runner = runner
        self.logger = logger
        self.validation = validation
        self.test = test
        self.interval = interval
        self._measured = measured
        self._last_validated = -1

    def at_start(self, state: TrainState) -> None:
        is_due = state.step > 0 and state.step % self.interval == 0
        if is_due and self._measured is not None:
            if not self._is_measured("validation", self.validation, state):
                self._validate(state)

    def after_step(self, state: TrainState, report: StepReport) -> None:
        if state.step % self.interval == 0:
            self._validate(state)

    def at_end(self, state: TrainState) -> None:
        if state.step != self._last_validated:
            self._validate(state)
        self._evaluate("test", self.test, state)

    def _validate(self, state: TrainState) -> None:
        self._last_validated = state.step
        self._evaluate("validation", self.validation, state)

    def _evaluate(self, name: str, source: EvaluationBatches | None, state: TrainState) -> None:
        if source is None or state.stop:  # evaluate.py can evaluate the checkpoint later
            return
        if self._is_measured(name, source, state):
            self.logger.say(f" {name} at iteration {state.step}: already in the run log")
            return
        try:
            results = evaluate_domains(
                self.runner,
                source,
                name=f"{name} at iteration {state.step}",
                say=self.logger.say,
                should_stop=lambda: any_rank_asked_to_stop(self.runner.device),
            )
        except EvaluationStopped:
            self.logger.say(f" {name} at iteration {state.step} stopped: the run was asked to stop")
            state.stop = True
            return
        self.logger.evaluation(name, state.step, results, averages(results))

    def _is_measured(self, name: str, source: EvaluationBatches | None, state: TrainState) -> bool:
        event = (self._measured or {}).get(name, {})
        if source is None or event.get("iteration") != state.step:
            return False
        return _samples_of(event) == _samples_of_source(source)


def _samples_of(event: Mapping[str, Any]) -> dict[str, int | None]:
    """Number of samples per domain that an event of the run log measured."""
    domains = event.get("domains", {})
    return {name: result.get("num_samples") for name, result in domains.items()}


def _samples_of_source(source: EvaluationBatches) -> dict[str, int]:
    return dict(zip(source.domains, source.num_samples, strict=True))
