"""Evaluates during and after training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron.data.evaluation_batches import EvaluationBatches
from megatron.engine.runners import StepRunner, any_rank_asked_to_stop
from megatron.engine.state import TrainState
from megatron.errors import EvaluationStopped
from megatron.evaluation.losses import averages, evaluate_domains
from megatron.hooks.periodic import PeriodicEvaluation
from megatron.reporting.run_logger import RunLogger

__all__ = ["EvaluationHook"]


class EvaluationHook(PeriodicEvaluation):
    """Evaluates validation sets every ``interval`` steps and at the end, test sets at the end.

    A request to stop ends an evaluation between two batches, without results. The evaluations in
    ``measured`` are not repeated on the same samples.
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
        super().__init__(interval=interval, measured=measured)
        self.runner = runner
        self.logger = logger
        self.validation = validation
        self.test = test

    def is_measured(self, state: TrainState) -> bool:
        return self._is_in_log("validation", self.validation, state)

    def evaluate(self, state: TrainState) -> None:
        self._measure("validation", self.validation, state)

    def at_end(self, state: TrainState) -> None:
        super().at_end(state)
        self._measure("test", self.test, state)

    def _measure(self, name: str, source: EvaluationBatches | None, state: TrainState) -> None:
        if source is None or state.stop:  # evaluate.py can evaluate the checkpoint later
            return
        if self._is_in_log(name, source, state):
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

    def _is_in_log(self, name: str, source: EvaluationBatches | None, state: TrainState) -> bool:
        event = (self.measured or {}).get(name, {})
        if source is None or event.get("iteration") != state.step:
            return False
        return _samples_of(event) == _samples_of_source(source)


def _samples_of(event: Mapping[str, Any]) -> dict[str, int | None]:
    """Number of samples per domain that an event of the run log measured."""
    domains = event.get("domains", {})
    return {name: result.get("num_samples") for name, result in domains.items()}


def _samples_of_source(source: EvaluationBatches) -> dict[str, int]:
    return dict(zip(source.domains, source.num_samples, strict=True))
