"""Logs training iterations."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from megatron.data.mixed_batches import MixedBatches
from megatron.engine.state import TrainState
from megatron.hooks.base import Hook, StepReport
from megatron.reporting.records import TrainRecord, typical_seconds
from megatron.reporting.run_logger import RunLogger
from odm import MixtureController, Signal

__all__ = ["LoggingHook", "update_fields"]

_TIMED_STEPS = 64


class LoggingHook(Hook):
    """Logs every ``interval``-th iteration and the last one.

    The run's ``last_step`` is logged before other hooks save and evaluate. If the run is killed
    after that save, a restart has nothing left to train and could not log this step any more.

    An update of the weights is logged too, beside a logged iteration or if none has been logged for
    ``interval`` iterations: so frequent updates do not make the log longer.
    """

    def __init__(
        self,
        logger: RunLogger,
        source: MixedBatches,
        mixture: MixtureController,
        *,
        interval: int,
        last_step: int | None = None,
    ):
        self.logger = logger
        self.source = source
        self.mixture = mixture
        self.interval = interval
        self.last_step = last_step
        self._seconds = 0.0
        self._steps = 0
        self._step_seconds: deque[float] = deque(maxlen=_TIMED_STEPS)
        self._nan_iterations = 0
        self._sums = np.zeros((4, len(mixture.domains)))
        self._last_report: StepReport | None = None
        self._last_update: int | None = None

    def after_step(self, state: TrainState, report: StepReport) -> None:
        self._seconds += report.seconds
        self._steps += 1
        self._step_seconds.append(report.step_seconds)
        self._nan_iterations += not math.isfinite(report.lm_loss)
        signal = report.signal
        self._sums += signal.loss_sum, signal.loss_sq_sum, signal.token_count, signal.sample_count
        self._last_report = report
        is_logged = state.step % self.interval == 0 or state.stop or state.step == self.last_step
        if is_logged:
            self._log(state, report)
        if self._last_update is None:
            self._last_update = state.step - 1
        if is_logged or state.step - self._last_update >= self.interval:
            self._log_update(state.step, report, is_logged=is_logged)

    def at_end(self, state: TrainState) -> None:
        if self._steps and self._last_report is not None:
            self._log(state, self._last_report)

    def _log(self, state: TrainState, report: StepReport) -> None:
        self.logger.train(self._record(state, report))
        self._seconds, self._steps = 0.0, 0
        self._sums.fill(0.0)

    def _log_update(self, step: int, report: StepReport, *, is_logged: bool) -> None:
        """Logs what the mixer has learnt from this step, if its weights follow from losses."""
        mixture = self.mixture
        if not (mixture.mixer.method.learns and mixture.is_update_due(step)):
            return
        decision = mixture.last_decision
        if decision["updated"]:
            self._last_update = step
            tokens = None if is_logged else report.signal.token_count.astype(np.int64).tolist()
            self.logger.update(step, update_fields(decision, mixture.domains, tokens=tokens))

    def _record(self, state: TrainState, report: StepReport) -> TrainRecord:
        domains = self.mixture.domains
        cursors, estimate = self.mixture.cursors, self.mixture.estimate
        batch = self.source.global_batch_size
        steps_per_second = self._steps / self._seconds

        def by_domain(values) -> dict:
            return dict(zip(domains, values, strict=True))

        def mean_losses(signal: Signal) -> dict[str, float | None]:
            means = signal.mean_loss().tolist()
            return by_domain([None if math.isnan(mean) else mean for mean in means])

        return TrainRecord(
            iteration=state.step,
            consumed_samples=state.consumed_samples,
            consumed_tokens=state.consumed_tokens,
            lm_loss=report.lm_loss,
            learning_rate=report.learning_rate,
            seconds=self._seconds / self._steps,
            step_seconds=typical_seconds(self._step_seconds),
            samples_per_second=batch * steps_per_second,
            tokens_per_second=batch * self.source.seq_length * steps_per_second,
            grad_norm=report.grad_norm,
            loss_scale=report.loss_scale,
            skipped_iterations=state.step - state.applied_steps,
            nan_iterations=self._nan_iterations,
            weights=by_domain(report.weights.tolist()),
            losses=mean_losses(report.signal),
            mean_losses=mean_losses(Signal.from_sums(self._sums)),
            tokens=by_domain(report.signal.token_count.astype(np.int64).tolist()),
            epochs=by_domain((cursors / self.source.samples_per_epoch).tolist()),
            # not divided by the batch size, which may have changed since the start
            iterations=by_domain((cursors * state.step / state.consumed_samples).tolist()),
            rewards={} if estimate is None else by_domain(estimate),
            reward_name=self.mixture.mixer.curve,
        )


def update_fields(
    decision: Mapping[str, Any], domains: Sequence[str], *, tokens: Sequence[int] | None
) -> dict[str, Any]:
    """The log line of an update, without what other lines of the iteration already have.

    Args:
        decision: `MixtureController.last_decision`.
        domains: Names of the domains.
        tokens: Tokens per domain of the iteration; None if the iteration has its own line, which
            then has losses and tokens.

    Returns:
        ``proposal``, the mixer's weights; ``weights``, those of the next draw, if limits changed
        them; ``limits``, what each limit did, in their order, with the names of the domains.
    """

    def by_domain(values: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(domains, values, strict=True))

    def named(effect: Any) -> Any:
        if not isinstance(effect, list):
            return effect
        return [domains[item] if type(item) is int else item for item in effect]

    found: dict[str, Any] = {}
    if tokens is not None:
        found = {"losses": by_domain(decision["losses"]), "tokens": by_domain(tokens)}
    found["proposal"] = by_domain(decision["proposal"])
    if decision["weights_after"] != decision["proposal"]:
        found["weights"] = by_domain(decision["weights_after"])
    effects = dict(decision["constraints"])
    order = effects.pop("order", [])
    limits = {name: named(effects[name]) for name in dict.fromkeys([*order, *effects])}
    return {**found, "limits": limits} if limits else found
