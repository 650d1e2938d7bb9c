"""Evaluates during and after training."""

from __future__ import annotations

from megatron.data.evaluation_batches import EvaluationBatches
from megatron.errors import EvaluationStopped
from megatron.evaluation import averages, evaluate_domains
from megatron.hooks.base import Hook, StepReport
from megatron.logging import RunLogger
from megatron.runners import StepRunner, any_rank_asked_to_stop
from megatron.state import TrainState

__all__ = ["EvaluationHook"]


class EvaluationHook(Hook):
    """Evaluates validation sets every ``interval`` steps and at the end, test sets at the end.

    A request to stop ends an evaluation between two batches, without results.
    """

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
        if source is None or state.stop:  # evaluation can be had later, with evaluate.py
            return
        try:
            results = evaluate_domains(
                self.runner, source, should_stop=lambda: any_rank_asked_to_stop(self.runner.device)
            )
        except EvaluationStopped:
            self.logger.say(f" {name} at iteration {state.step} broken off: asked to stop")
            state.stop = True
            return
        self.logger.evaluation(name, state.step, results, averages(results))
