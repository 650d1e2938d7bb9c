"""Logs statistics of single parameters, and the gradient noise scale."""

from __future__ import annotations

from typing import Any

from megatron.engine.noise_scale import NoiseScale
from megatron.engine.parameter_statistics import ParameterStatistics
from megatron.engine.runners import StepRunner
from megatron.engine.state import TrainState
from megatron.engine.step_gradients import GradientReader, read_gradients
from megatron.hooks.base import Hook, StepReport
from megatron.neox_arguments import RunConfig
from megatron.reporting.run_logger import RunLogger

__all__ = ["StatisticsHook", "statistics_hooks"]


def statistics_hooks(runner: StepRunner, config: RunConfig, logger: RunLogger) -> list[Hook]:
    """The hook for the statistics that the configuration asks for; none if it asks for none."""
    statistics = ParameterStatistics(runner, config)
    noise_scale = None
    if config.logging.log_gradient_noise_scale:
        noise_scale = NoiseScale(
            config.batch.train_batch_size,
            config.logging.gradient_noise_scale_n_batches,
            device=runner.device,
            on_cpu=config.logging.gradient_noise_scale_cpu_offload,
        )
    if not statistics.is_on and noise_scale is None:
        return []
    readers: list[GradientReader] = [statistics] if statistics.is_on else []
    readers += [noise_scale] if noise_scale else []
    read_gradients(runner, readers, clip_limit=config.optimizer.gradient_clipping)
    return [
        StatisticsHook(
            logger,
            statistics if statistics.is_on else None,
            noise_scale,
            interval=config.logging.interval,
            last_step=config.schedule.train_iters,
        )
    ]


class StatisticsHook(Hook):
    """Logs statistics with the same iterations as the losses, apart from that of a requested stop.

    Args:
        logger: Gets them.
        statistics: Measures parameters, or None.
        noise_scale: Follows the gradients of all iterations, or None.
        interval: Iterations from one logged iteration to the next.
        last_step: Is logged too.
    """

    def __init__(
        self,
        logger: RunLogger,
        statistics: ParameterStatistics | None,
        noise_scale: NoiseScale | None,
        *,
        interval: int,
        last_step: int,
    ):
        self.logger = logger
        self.statistics = statistics
        self.noise_scale = noise_scale
        self.interval = interval
        self.last_step = last_step

    def before_step(self, step: int) -> None:
        if self.statistics is not None:
            self.statistics.before_step(is_logged=self._is_logged(step))

    def after_step(self, state: TrainState, report: StepReport) -> None:
        if self.noise_scale is not None:
            self.noise_scale.after_step(skipped=report.skipped)
        if not self._is_logged(state.step):
            return
        found: dict[str, Any] = {}
        if self.noise_scale is not None and (value := self.noise_scale.value()) is not None:
            found["noise_scale"] = value
        if self.statistics is not None:
            found |= self.statistics.collect()
        if found:
            self.logger.statistics(state.step, found)

    def _is_logged(self, step: int) -> bool:
        return step % self.interval == 0 or step == self.last_step
