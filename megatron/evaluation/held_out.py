"""Measures the held-out losses that a mixture learns from, a part of the windows at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from megatron.data.data_utils import build_held_out_source
from megatron.data.evaluation_batches import EvaluationBatches
from megatron.engine.domain_sums import DomainLossRecorder, all_reduce_sum
from megatron.engine.runners import Evaluator
from megatron.neox_arguments import RunConfig
from megatron.reporting.run_logger import RunLogger
from odm.held_out import HeldOut, HeldOutRecord

__all__ = ["HeldOutMeter", "Measure", "build_held_out_meter", "measure_nothing"]

Measure = Callable[[Evaluator, int, float], HeldOut | None]
"""`HeldOutMeter.after_step`, or `measure_nothing`."""


def measure_nothing(runner: Evaluator, step: int, step_seconds: float) -> None:
    """In the place of a meter in a run that measures no held-out losses."""


def build_held_out_meter(
    config: RunConfig, domains: Sequence[str], logger: RunLogger, **data: Any
) -> HeldOutMeter | None:
    """Builds the meter that the configuration asks for; None if nothing is measured.

    Args:
        config: The resolved configuration.
        domains: Names of the training domains.
        logger: Logs each measurement and its cost.
        **data: See `build_held_out_source`, whose errors are raised.
    """
    source = build_held_out_source(config, domains, **data)
    if source is None or config.mixing.heldout_interval is None:
        return None
    return HeldOutMeter(
        source,
        logger,
        interval=config.mixing.heldout_interval,
        num_parts=config.mixing.heldout_parts,
    )


class HeldOutMeter:
    """Measures the next part of the held-out windows every ``interval`` steps.

    All ranks call each method together and get the same numbers. A measurement only runs forward
    passes of the model in evaluation mode; it changes neither weights nor random numbers.

    Args:
        source: The windows, as the samples of each training domain.
        logger: Logs each measurement and its cost.
        interval: Steps from one measurement to the next.
        num_parts: Measurements until every window has been measured again.
    """

    def __init__(
        self,
        source: EvaluationBatches,
        logger: RunLogger,
        *,
        interval: int,
        num_parts: int,
    ) -> None:
        self._source = source
        self._logger = logger
        self._interval = interval
        self._record = HeldOutRecord(source.num_samples, num_parts)
        self._step_seconds = 0.0

    def after_step(self, runner: Evaluator, step: int, step_seconds: float) -> HeldOut | None:
        """Measures if a measurement is due after a step.

        Args:
            runner: Computes the losses.
            step: The step that has just ended, counted from 1.
            step_seconds: Its wall time, for the share that measurements cost.

        Returns:
            What is known about the held-out losses; None if nothing was measured, or if a loss is
            not finite. Such a part is measured again the next time.
        """
        self._step_seconds += step_seconds
        if step % self._interval:
            return None
        began = time.perf_counter()
        loss, tokens = self._measure(runner)
        seconds = time.perf_counter() - began
        share, self._step_seconds = seconds / (seconds + self._step_seconds), 0.0
        try:
            held_out = self._record.update(step, loss, tokens)
        except ValueError as error:
            self._logger.warning(f"{error}; the weights do not follow it", iteration=step)
            return None
        domains = held_out.by_domain(self._source.domains)
        self._logger.held_out(step, domains, seconds=seconds, share_of_time=share)
        return held_out

    def state_dict(self) -> dict[str, Any]:
        """The last loss of each window, as JSON data that does not depend on the layout."""
        return self._record.state_dict()

    def continue_from(self, mixture: Mapping[str, Any] | None) -> None:
        """Continues from ``mixture.json`` of a checkpoint, if the saved run measured anything."""
        state = (mixture or {}).get("held_out")
        if state is not None and not self._record.load_state_dict(state):
            self._logger.warning(
                "the held-out windows are not those of the checkpoint (validation data, "
                "data_sampling_heldout_samples or data_sampling_heldout_parts changed); the next "
                "measurement is of all windows"
            )

    def _measure(self, runner: Evaluator) -> tuple[np.ndarray, np.ndarray]:
        """Sums of losses and tokens of the next windows over all ranks, each of shape (n,)."""
        domains, windows = self._record.next_windows()
        recorder = DomainLossRecorder(len(windows), runner.device)
        ids = np.arange(len(windows))  # the recorder sums by window, not by domain
        runner.evaluate(self._source.chosen(domains, windows, ids=ids), recorder)
        sums = recorder.sums()
        both = all_reduce_sum(torch.stack((sums.loss_sum, sums.token_count)))
        loss, tokens = both.cpu().numpy()
        return loss, tokens
