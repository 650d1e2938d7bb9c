"""Norms of single parameters, of their gradients and of their moments, for the logged iterations.

Each rank sums the squares of what it owns, one all-reduce adds them up, and the host waits once,
when an iteration is logged.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron.checkpoint.snapshot import owned_fragments
from megatron.engine.domain_sums import all_reduce_sum
from megatron.engine.gradient_norm import sum_of_squares
from megatron.engine.optimizers import moment_names
from megatron.engine.runners import StepRunner
from megatron.neox_arguments import RunConfig
from megatron.runtime.agreement import gather

__all__ = ["ParameterStatistics"]

Statistics = dict[str, dict[str, float]]
"""GPT-NeoX's name of a statistic -> parameter -> value."""


class ParameterStatistics:
    """Measures what ``log_grad_norm``, ``log_grad_pct_zeros``, ``log_param_norm`` and
    ``log_optimizer_states`` ask for. A `GradientReader`.

    Args:
        runner: Has the engine.
        config: The resolved configuration.
    """

    def __init__(self, runner: StepRunner, config: RunConfig):
        self._runner = runner
        self._logging = config.logging
        self._moments = moment_names(config) if config.logging.log_optimizer_states else ()
        self._names: list[str] = []
        self._sums: dict[tuple[str, str], Tensor] = {}
        self._reads_gradients = self._logging.log_grad_norm or self._logging.log_grad_pct_zeros
        self.wants_gradients = False

    @property
    def is_on(self) -> bool:
        """Whether the configuration asks for anything."""
        logging = self._logging
        return self._reads_gradients or logging.log_param_norm or logging.log_optimizer_states

    def before_step(self, *, is_logged: bool) -> None:
        """Prepares for the next optimizer step, whose gradients are read only if it is logged."""
        self.wants_gradients = self._reads_gradients and is_logged

    def take(self, name: str, gradient: Tensor, scale: Tensor) -> None:
        """See `GradientReader`."""
        if self._logging.log_grad_norm:
            self._add("gradient_norms", name, sum_of_squares(gradient) * scale.square())
        if self._logging.log_grad_pct_zeros:
            self._add("zeros", name, (gradient == 0).sum(dtype=torch.float64))
            self._add("elements", name, scale.new_full((), gradient.numel()))

    def collect(self) -> Statistics:
        """Statistics of the step that has just been taken; all ranks call it.

        Returns:
            Norms under ``gradient_norms``, ``parameter_norms`` and ``optimizer_state_norms`` (keys
            ``<parameter>_<moment>``), and percentages under ``pct_grad_zeros``. Gradients are
            measured before clipping, weights after the step. There is no entry for the gradients of
            a step that was skipped.
        """
        for fragment in owned_fragments(self._runner.engine, self._runner.topology, self._moments):
            for kind, values in fragment.values.items():
                if kind != "fp32":
                    key = f"{fragment.name}_{kind}"
                    self._add("optimizer_state_norms", key, sum_of_squares(values))
                elif self._logging.log_param_norm:
                    self._add("parameter_norms", fragment.name, sum_of_squares(values))
        keys = list(dict.fromkeys(tuple(key) for part in gather(list(self._sums)) for key in part))
        nothing = torch.zeros((), dtype=torch.float64, device=self._runner.device)
        own = [self._sums.get(key, nothing) for key in keys]
        sums = all_reduce_sum(torch.stack(own)).tolist() if keys else []
        self._sums.clear()
        found: Statistics = {}
        for (statistic, name), total in zip(keys, sums, strict=True):
            found.setdefault(statistic, {})[name] = total
        zeros, elements = found.pop("zeros", {}), found.pop("elements", {})
        norms = {
            statistic: {name: square**0.5 for name, square in squares.items()}
            for statistic, squares in found.items()
        }
        if zeros:
            norms["pct_grad_zeros"] = {
                name: 100.0 * count / elements[name] for name, count in zeros.items()
            }
        return norms

    def _add(self, statistic: str, name: str, value: Tensor) -> None:
        key = (statistic, name)
        self._sums[key] = self._sums[key] + value if key in self._sums else value
