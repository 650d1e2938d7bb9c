"""Evaluates during and after training."""

from __future__ import annotations

from megatron.data.evaluation_batches import EvaluationBatches
from megatron.evaluation import averages, evaluate_domains
from megatron.hooks.base import Hook, StepReport
from megatron.logging import RunLogger
from megatron.runners import StepRunner
from megatron.state import TrainState

__all__ = ["EvaluationHook"]


class EvaluationHook(Hook):
    """Evaluates validation sets every ``interval`` steps and at the end, test sets at the end."""

    def __init__(
        self,
        runner: StepRunner,
        logger: RunLogger,
        *,
        validation: EvaluationBatches | None,
        test: EvaluationBatches | None,
        interval: int,
    ):
        self.runner = runner
        self.logger = logger
        self.validation = validation
        self.test = test
        self.interval = interval
        self._last_validated = -1

    def after_step(self, state: TrainState, report: StepReport) -> None:
        if state.step % self.interval == 0 and not state.stop:
            self._validate(state.step)

    def at_end(self, state: TrainState) -> None:
        if state.stop:  # asked to stop: saving comes first, evaluation can be had later
            return
        if state.step != self._last_validated:
            self._validate(state.step)
        if self.test is not None:
            results = evaluate_domains(self.runner, self.test)
            self.logger.evaluation("test", state.step, results, averages(results))

    def _validate(self, step: int) -> None:
        if self.validation is None:
            return
        self._last_validated = step
        results = evaluate_domains(self.runner, self.validation)
        self.logger.evaluation("validation", step, results, averages(results))
