"""Skill-It: domains in proportion to what they teach the domains whose loss is high."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..json_data import Check, list_of, number
from ..observation import Observation
from ..simplex import FloatArray, holds_everywhere, normalize, softmax
from ..wording import counted, shown
from .base import Mixer, State, check_step_size, finite_numbers, register

_MAX_PULL = 1e300


@register("skill_graph")
@dataclass(frozen=True)
class SkillGraph(Mixer):
    """``p_i ~ prior_i exp(step_size * sum over the last updates and over j of A_ij L_j)``.

    A is given: entry ij tells how much training on domain i lowers the loss of domain j. L are
    held-out losses in an update that comes with them, else the training losses of the step. A
    domain without a loss counts with its last one, or with the mean of the others if it never had
    one. The prior is the initial weights.

    Source: Chen et al. 2023, arXiv:2307.14430, and the released code. Different on purpose:

    - The original measures held-out losses at every update and makes 5 to 10 updates per run; here
      ``update_frequency`` of the controller decides.
    - Its first weights are ``exp(step_size * sum_j A_ij)``; here they are the initial weights.
    - It estimates A by training on each domain alone. Here A is given, and is used as it is (the
      released code replaces ones off the diagonal by 0.5).

    The cost of an update is that of the product with A, so it grows with the square of K.
    """

    estimate = "pull"

    transfer_matrix: tuple[tuple[float, ...], ...] = ()
    """A, one row of K numbers per domain; required."""
    step_size: float = 0.2
    """Factor of the sum (eta), above 0."""
    window: int = 3
    """Number of the last updates that are added up, at least 1."""

    def __post_init__(self) -> None:
        rows = self.transfer_matrix
        name = "transfer_matrix"
        if not isinstance(rows, (list, tuple)) or not rows:
            raise ValueError(f"{self.name}: needs {name}, a list of K numbers per domain")
        matrix = tuple(finite_numbers(self.name, f"{name}[{i}]", row) for i, row in enumerate(rows))
        if {len(row) for row in matrix} != {len(matrix)}:
            raise ValueError(
                f"{self.name}: {name} must have as many columns as rows, got "
                f"{counted(len(matrix), 'row')} of {sorted({len(row) for row in matrix})} numbers"
            )
        object.__setattr__(self, name, matrix)
        check_step_size(self.name, self.step_size)
        if type(self.window) is not int or self.window < 1:
            raise ValueError(
                f"{self.name}: window must be a whole number from 1 on, got {shown(self.window)}"
            )

    @cached_property
    def _matrix(self) -> FloatArray:
        return np.array(self.transfer_matrix, dtype=np.float64)

    def _init(self, weights: FloatArray) -> State:
        if len(self.transfer_matrix) != weights.size:
            raise ValueError(
                f"{self.name}: transfer_matrix is for "
                f"{counted(len(self.transfer_matrix), 'domain')}, the run has {weights.size}; give "
                "one row and one column per domain"
            )
        prior = normalize(weights).tolist()
        return {"prior": prior, "losses": [], "pull": [0.0] * weights.size}

    def state_fields(self, initial: FloatArray, step: int) -> dict[str, Check]:
        """As in `Mixer`."""
        size = initial.size
        return {
            "prior": list_of(number(0, 1 + 1e-9), size),
            "losses": list_of(list_of(number(), size)),
            "pull": list_of(number(), size),
        }

    def _update(self, state: State, observation: Observation) -> tuple[State, FloatArray]:
        rows = [*state["losses"], self._losses(state, observation).tolist()][-self.window :]
        with np.errstate(all="ignore"):  # a weight of 0 stays 0; huge numbers are bounded
            # einsum rounds alike with any number of threads
            pull = _bounded(np.einsum("ij,j->i", self._matrix, np.array(rows).sum(axis=0)))
            logits = np.log(state["prior"]) + _bounded(self.step_size * pull)
        return {"prior": state["prior"], "losses": rows, "pull": pull.tolist()}, softmax(logits)

    def _losses(self, state: State, observation: Observation) -> FloatArray:
        """The losses of an update in nats, shape (K,), with the last one where there is none."""
        losses = np.where(observation.present, observation.losses, np.nan)
        if observation.held_out is not None:
            losses = observation.held_out.mean_loss
        is_known = ~np.isnan(losses)
        if not is_known.any():  # held-out losses of no domain
            losses, is_known = observation.losses, observation.present
        last = state["losses"][-1] if state["losses"] else losses[is_known].mean()
        return np.where(is_known, losses, last)


def _bounded(values: FloatArray) -> FloatArray:
    """Finite numbers in place of those that have overflowed."""
    if holds_everywhere(np.abs(values) <= _MAX_PULL):
        return values
    return np.clip(np.nan_to_num(values), -_MAX_PULL, _MAX_PULL)
