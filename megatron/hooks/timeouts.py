"""After the first step, a rank that hangs is noticed sooner."""

from __future__ import annotations

from typing import Any

from megatron.engine.state import TrainState
from megatron.hooks.base import Hook, StepReport
from megatron.runtime.initialize import set_timeout_on_all_groups

__all__ = ["TimeoutHook"]


class TimeoutHook(Hook):
    """Gives all process groups the timeout of a run that is under way, once."""

    def __init__(self, config: Any) -> None:
        self._config = config
        self._is_done = False

    def after_step(self, state: TrainState, report: StepReport) -> None:
        """Sets the timeout after the first step of this process."""
        if not self._is_done:
            set_timeout_on_all_groups(self._config)
            self._is_done = True
