"""Losses on fixed held-out text, measured in rotating parts so that they cost little.

Every domain has a fixed list of windows (samples of held-out text), cut into parts. A measurement
computes the losses of one part of every domain; the next one computes the next part. The windows
are the same in the whole run, so that the noise of the choice of text cancels in differences over
time (common random numbers).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .arguments import (
    check_kind,
    number_array,
    refuse_argument,
    some,
    whole_number,
    whole_numbers,
    wrong_values,
)
from .curves import MAX_LOG_STEP
from .json_data import fields, integer, list_of, number
from .simplex import FloatArray, IntArray
from .wording import counted

__all__ = ["HeldOut", "HeldOutRecord", "WindowChoice"]


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What is known about the held-out loss of each domain after a measurement.

    Arrays are float64, of shape (K,), copied and read-only; an entry is nan if it is not known.
    The mean covers windows that were measured at different steps. ``log_step`` is the mean of the
    logarithms of these steps with the same weights: where every window's loss is linear in the
    logarithm of the step, so is ``mean_loss`` in ``log_step``, without the noise of the windows.

    Raises:
        ValueError: If shapes differ, a loss is infinite, or a loss is known and its ``log_step``
            is not the logarithm of a step.
    """

    mean_loss: FloatArray
    """Mean over the tokens of all measured windows, in nats per token; nan for a domain without
    held-out text."""
    standard_error: FloatArray
    """Standard error of ``mean_loss`` with windows as the units that vary, in nats per token: how
    far it may be from the mean over all text of the domain. Unknown below two windows."""
    token_count: FloatArray
    """Tokens that ``mean_loss`` is the mean of; 0 for a domain without held-out text."""
    log_step: FloatArray
    """Token-weighted mean of ln(step at which a window was last measured)."""
    change: FloatArray
    """Mean loss of the windows of this measurement less that of the same windows when they were
    measured before, in nats per token; unknown at the first visit. Windows cancel in it."""
    change_error: FloatArray
    """Standard error of ``change`` from the differences of each window; unknown below two."""
    change_log_step: FloatArray
    """Token-weighted mean of ln(step) of this measurement less that of the one before."""

    def __post_init__(self) -> None:
        shape = np.shape(self.mean_loss)
        if len(shape) != 1 or shape[0] == 0:
            raise ValueError(f"held_out: mean_loss must have shape (K,), K >= 1, got {shape}")
        for field in dataclasses.fields(self):
            values = number_array(f"held_out: {field.name}", getattr(self, field.name))
            if values.shape != shape:
                raise ValueError(
                    f"held_out: {field.name} has shape {values.shape}, mean_loss has {shape}"
                )
            values.flags.writeable = False
            object.__setattr__(self, field.name, values)
        if np.isinf(self.mean_loss).any():
            wrong = int(np.isinf(self.mean_loss).argmax())
            raise ValueError(
                f"held_out: mean_loss of domain {wrong} is {self.mean_loss[wrong]}; leave such a "
                "domain out (nan)"
            )
        is_right = np.isnan(self.mean_loss) | (
            (self.log_step >= 0) & (self.log_step <= MAX_LOG_STEP)
        )
        if not is_right.all():
            wrong = int(is_right.argmin())
            raise ValueError(
                f"held_out: log_step of domain {wrong} must be from 0 to {MAX_LOG_STEP:g} where "
                f"mean_loss is known, got {self.log_step[wrong]}"
            )

    @classmethod
    def from_means(
        cls,
        mean_loss: ArrayLike,
        *,
        step: int,
        standard_error: ArrayLike | None = None,
        token_count: ArrayLike | None = None,
    ) -> HeldOut:
        """Makes it from losses that a trainer measured itself, all of them at the same step.

        Args:
            mean_loss: Nats per token, shape (K,), nan for a domain without held-out text.
            step: The step of the measurement, counted from 1.
            standard_error: Standard error of each mean, shape (K,); None if it is not known.
            token_count: Tokens of each mean, shape (K,); None if they are not known.
        """
        means = number_array("held_out: mean_loss", mean_loss)
        step = whole_number("held_out: step", step, 1)
        unknown = np.full(means.shape, np.nan)
        return cls(
            mean_loss=means,
            standard_error=unknown if standard_error is None else np.asarray(standard_error),
            token_count=unknown if token_count is None else np.asarray(token_count),
            log_step=np.where(np.isnan(means), np.nan, math.log(step)),
            change=unknown,
            change_error=unknown,
            change_log_step=unknown,
        )

    @classmethod
    def from_domains(
        cls, values: Mapping[str, Mapping[str, float | None]], domains: Sequence[str]
    ) -> HeldOut:
        """Makes it from what `by_domain` returned; other keys are ignored.

        Raises:
            ValueError: If a field is missing, or is not about these domains.
        """
        arrays = {}
        for field in dataclasses.fields(cls):
            of_domains = values.get(field.name)
            if not isinstance(of_domains, Mapping) or set(of_domains) != set(domains):
                raise ValueError(f"{field.name} must name the domains {some(domains)}")
            numbers = [of_domains[name] for name in domains]
            arrays[field.name] = np.array([math.nan if n is None else n for n in numbers])
        return cls(**arrays)

    def by_domain(self, domains: Sequence[str]) -> dict[str, dict[str, float | None]]:
        """All fields as JSON data, {field: {domain: number, null if it is not known}}."""
        return {
            field.name: {
                name: None if math.isnan(value) else value
                for name, value in zip(domains, getattr(self, field.name).tolist(), strict=True)
            }
            for field in dataclasses.fields(self)
        }

    @property
    def num_domains(self) -> int:
        """Number of domains K."""
        return int(self.mean_loss.size)


class WindowChoice(NamedTuple):
    """The windows of a measurement; int64 arrays of shape (n,), sorted by window, then domain."""

    domains: IntArray
    """Number of the domain of each window."""
    windows: IntArray
    """Number of the window inside its domain."""


class HeldOutRecord:
    """The last loss of every held-out window, and which windows come next.

    Use it in the order ``next_windows()``, measure them, ``update(step, ...)``. The first
    measurement is of all windows, so that every mean covers the same windows. Afterwards window i
    of a domain belongs to part i modulo the number of parts, and each measurement takes the next
    part of every domain; a domain with fewer windows than parts repeats them sooner.

    Args:
        num_windows: Windows of each domain, shape (K,); 0 for a domain without held-out text.
        num_parts: Measurements until every window has been measured again.

    Raises:
        ValueError: If there is no window, or a number is out of range.
    """

    def __init__(self, num_windows: Sequence[int], num_parts: int = 1) -> None:
        counts = np.array(whole_numbers("held_out: num_windows", num_windows), dtype=np.int64)
        if not counts.any():
            refuse_argument("held_out: num_windows", "above 0 for one domain or more", num_windows)
        self.num_windows, self.num_parts = counts, whole_number("held_out: num_parts", num_parts, 1)
        self._domains = np.repeat(np.arange(counts.size), counts)
        self._windows = np.arange(self._domains.size) - np.repeat(counts.cumsum() - counts, counts)
        self._by_window = np.lexsort((self._domains, self._windows))
        self._visits = 0
        self._loss, self._tokens, self._log_step = np.zeros((3, self._domains.size))

    @property
    def num_domains(self) -> int:
        """Number of domains K."""
        return int(self.num_windows.size)

    def next_windows(self) -> WindowChoice:
        """The windows of the next measurement."""
        chosen = self._chosen()
        return WindowChoice(self._domains[chosen], self._windows[chosen])

    def update(self, step: int, loss_sum: ArrayLike, token_count: ArrayLike) -> HeldOut:
        """Takes the losses of ``next_windows`` and moves on to the next part.

        Args:
            step: The step after which they were measured, counted from 1.
            loss_sum: Sum of the losses over the tokens of each window, in nats, shape (n,).
            token_count: Tokens of each window that count, shape (n,).

        Raises:
            ValueError: If a shape is wrong or a loss is not finite. Nothing changes then.
        """
        chosen = self._chosen()
        step = whole_number("held_out: step", step, 1)
        loss = number_array("held_out: loss_sum", loss_sum)
        tokens = number_array("held_out: token_count", token_count)
        if not loss.shape == tokens.shape == chosen.shape:
            raise ValueError(
                f"held_out: losses and tokens must be of the {chosen.size} windows of "
                f"next_windows(), got shapes {loss.shape} and {tokens.shape}"
            )
        is_count = (tokens >= 0) & (tokens < np.inf)
        if not is_count.all():
            got = wrong_values(tokens, is_count)
            raise ValueError(f"held_out: token_count must be finite and >= 0, got {got}")
        is_finite = np.isfinite(loss)
        if not is_finite.all():
            wrong = int(is_finite.argmin())
            raise ValueError(
                f"held_out: loss of window {self._windows[chosen[wrong]]} of domain "
                f"{self._domains[chosen[wrong]]} at step {step} is {loss[wrong]}, must be finite"
            )
        old_loss, old_log_step = self._loss[chosen], self._log_step[chosen]
        known = np.where(self._tokens[chosen] > 0, tokens, 0.0)  # tokens of windows seen before
        self._loss[chosen], self._tokens[chosen] = loss, tokens
        self._log_step[chosen] = math.log(step)
        self._visits += 1
        domains = self._domains[chosen]
        difference = np.where(known > 0, loss - old_loss, 0.0)
        change, change_error = self._means(domains, difference, known)
        since = (math.log(step) - old_log_step) * known
        return dataclasses.replace(
            self._levels(),
            change=change,
            change_error=change_error,
            change_log_step=self._means(domains, since, known)[0],
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that a restart needs, as JSON data; JSON keeps floats exactly."""
        return {
            "num_windows": self.num_windows.tolist(),
            "num_parts": self.num_parts,
            "visits": self._visits,
            "loss_sum": self._loss.tolist(),
            "token_count": self._tokens.tolist(),
            "log_step": self._log_step.tolist(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> bool:
        """Continues from a state of ``state_dict``.

        Returns:
            Whether the state was used. If the windows or parts are others than in this object, it
            is not, and the next measurement is of all windows.

        Raises:
            SchemaError: If the state is damaged.
        """
        check_record(state)
        if [state["num_windows"], state["num_parts"]] != [
            self.num_windows.tolist(),
            self.num_parts,
        ]:
            return False
        self._visits = state["visits"]
        self._loss, self._tokens, self._log_step = (
            np.array(state[name], dtype=np.float64)
            for name in ("loss_sum", "token_count", "log_step")
        )
        return True

    def _chosen(self) -> IntArray:
        """Places of the next windows among all windows."""
        if not self._visits:
            return self._by_window
        parts = np.minimum(self.num_parts, self.num_windows)[self._domains[self._by_window]]
        return self._by_window[self._windows[self._by_window] % parts == self._visits % parts]

    def _levels(self) -> HeldOut:
        """Means over all windows; their changes are not known yet."""
        mean, error = self._means(self._domains, self._loss, self._tokens)
        tokens = self._total(self._domains, self._tokens)
        log_step, _ = self._means(self._domains, self._log_step * self._tokens, self._tokens)
        unknown = np.full(mean.shape, np.nan)
        return HeldOut(mean, error, tokens, log_step, unknown, unknown, unknown)

    def _means(
        self, domains: IntArray, values: FloatArray, tokens: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Per-domain means of sums over windows, and their standard errors, each of shape (K,).

        The mean is a ratio of sums over windows. Its linearised variance is n / (n - 1)
        sum((V - mean T)^2) / sum(T)^2 (Cochran 1977, Sampling Techniques, section 6.4).

        Args:
            domains: Domain of each window, shape (n,).
            values: Sums V over the tokens of each window, shape (n,).
            tokens: Tokens T of each window, shape (n,); windows without tokens do not count.
        """
        all_tokens = self._total(domains, tokens)
        count = self._total(domains, (tokens > 0).astype(np.float64))
        divisor = np.where(all_tokens > 0, all_tokens, np.nan)
        mean = self._total(domains, values) / divisor
        rest = np.where(tokens > 0, values - mean[domains] * tokens, 0.0)
        freedom = np.where(count > 1, count - 1, np.nan)
        return mean, np.sqrt(self._total(domains, rest * rest) * count / freedom) / divisor

    def _total(self, domains: IntArray, of_windows: FloatArray) -> FloatArray:
        """Sums over the windows of each domain, shape (K,)."""
        return np.bincount(domains, of_windows, minlength=self.num_domains).astype(np.float64)


def check_held_out(held_out: Any, num_domains: int, *, step: int, where: str) -> None:
    """Raises a ``ValueError`` for what is neither None nor a measurement of these domains."""
    if held_out is None:
        return
    where = f"{where}: held_out at step {step}"
    check_kind(where, held_out, HeldOut, example="HeldOut.from_means(losses, step=step)")
    if held_out.num_domains != num_domains:
        raise ValueError(
            f"{where}: is for {counted(held_out.num_domains, 'domain')}, the run has {num_domains}"
        )


def check_record(state: Any, where: str = "") -> None:
    """Checks a state of `HeldOutRecord`; see `odm.json_data.Check`."""
    fields({"num_windows": list_of(integer(0))})(state, where)
    total = sum(state["num_windows"])
    check = {
        "num_parts": integer(1),
        "visits": integer(0),
        "loss_sum": list_of(number(), total),
        "token_count": list_of(number(0), total),
        "log_step": list_of(number(0), total),
    }
    fields(check)(state, where)
