"""What one training step observed about each domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .arguments import check_kind, number_array, refuse_argument, wrong_values
from .simplex import BoolArray, FloatArray, IntArray, holds_everywhere
from .wording import counted

_FIELDS = ("loss_sum", "loss_sq_sum", "token_count", "sample_count")


@dataclass(frozen=True, eq=False)
class Signal:
    """Sums over the tokens of one step, per domain and over all data-parallel ranks.

    All fields are float64 arrays of shape (K,), copied and read-only. A domain that was not in
    the batch has count 0 and sums 0; it is *absent*, which is different from a loss of 0.
    A loss may be infinite or nan here, since a half-precision step can overflow; ``drop_nonfinite``
    removes such domains, and every mixer raises an error for them.

    Raises:
        ValueError: If shapes differ, a count is negative or not finite, or an absent domain has
            a loss.
    """

    loss_sum: FloatArray
    """Sum of the loss over the domain's tokens, in nats."""
    loss_sq_sum: FloatArray
    """Sum of the squared loss over the domain's tokens; zeros if it is not recorded."""
    token_count: FloatArray
    """Number of tokens that counted in the loss."""
    sample_count: FloatArray
    """Number of sequences with these tokens."""

    def __post_init__(self) -> None:
        fields = [getattr(self, name) for name in _FIELDS]
        try:
            shape = np.shape(self.token_count)
            shapes = [np.shape(values) for values in fields]
        except ValueError:  # lists of several lengths
            refuse_argument("signal: sums and counts", "numbers, one per domain", fields)
        if len(shape) != 1 or shape[0] == 0:
            raise ValueError(f"signal: token_count must have shape (K,), K >= 1, got {shape}")
        for name, given in zip(_FIELDS, shapes, strict=True):
            if given != shape:
                raise ValueError(f"signal: {name} has shape {given}, token_count has {shape}")
        table = number_array("signal: sums and counts", fields)
        self._keep(table)
        is_count = (table[2:] >= 0) & (table[2:] < np.inf)
        if not holds_everywhere(is_count):
            row = int(is_count.all(axis=1).argmin())
            got = wrong_values(table[2 + row], is_count[row])
            raise ValueError(f"signal: {_FIELDS[2 + row]} must be finite and >= 0, got {got}")
        is_right = (self.token_count > 0) | ((self.loss_sum == 0) & (self.loss_sq_sum == 0))
        if not holds_everywhere(is_right):
            wrong = int(is_right.argmin())
            raise ValueError(
                f"signal: domain {wrong} has token_count 0 but loss_sum {self.loss_sum[wrong]}; "
                "an absent domain must have sums of 0"
            )

    def _keep(self, table: FloatArray) -> None:
        table.flags.writeable = False
        for name, row in zip(_FIELDS, table, strict=True):
            object.__setattr__(self, name, row)

    @classmethod
    def from_sums(cls, table: FloatArray) -> Signal:
        """Builds a signal from sums that a trainer computed itself; the values are not checked.

        After a model's step the CPU caches are cold, so checks take longer than one expects.

        Args:
            table: The four fields as rows, in their order, float64, shape (4, K).
        """
        if table.ndim != 2 or len(table) != len(_FIELDS) or not table.size:
            raise ValueError(f"signal: a table must have shape (4, K), K >= 1, got {table.shape}")
        signal = cls.__new__(cls)
        signal._keep(np.array(table, dtype=np.float64))
        return signal

    @classmethod
    def from_means(
        cls, mean_loss: ArrayLike, token_count: ArrayLike, sample_count: ArrayLike | None = None
    ) -> Signal:
        """Builds a signal from token-weighted mean losses; entries with count 0 are ignored.

        Args:
            mean_loss: Nats per token, shape (K,); ignored if the count is 0.
            token_count: Number of tokens in each mean, shape (K,).
            sample_count: Number of sequences in each mean, shape (K,); defaults to 0.
        """
        counts = number_array("signal: token_count", token_count)
        means = number_array("signal: mean_loss", mean_loss)
        if means.shape != counts.shape:
            raise ValueError(f"signal: {means.shape} mean losses for {counts.shape} token counts")
        with np.errstate(over="ignore"):  # what is infinite is refused where it is used
            loss_sum = np.where(counts > 0, means, 0.0) * counts
        samples = np.zeros_like(counts) if sample_count is None else sample_count
        return cls(loss_sum, np.zeros_like(counts), counts, np.asarray(samples))

    @property
    def num_domains(self) -> int:
        """Number of domains K."""
        return int(self.token_count.size)

    def mean_loss(self) -> FloatArray:
        """Token-weighted mean loss in nats, shape (K,); nan for absent domains."""
        return self.loss_sum / np.where(self.token_count > 0, self.token_count, np.nan)

    def merge(self, other: Signal) -> Signal:
        """Adds the sums of another signal over the same domains (micro-batches, ranks, steps)."""
        check_kind("signal: what is merged", other, Signal, example="Signal.from_means(...)")
        if other.num_domains != self.num_domains:
            raise ValueError(
                f"signal: cannot merge {counted(self.num_domains, 'domain')} with "
                f"{other.num_domains}"
            )
        with np.errstate(over="ignore"):  # as there
            sums = [getattr(self, name) + getattr(other, name) for name in _FIELDS]
        return Signal(*sums)

    def drop_nonfinite(self) -> tuple[Signal, IntArray]:
        """Makes domains absent whose loss is infinite or nan.

        For steps that the optimizer skips because half precision overflowed.

        Returns:
            The signal without these domains, and their indices (int64, ascending).
        """
        finite = np.isfinite(self.loss_sum) & np.isfinite(self.loss_sq_sum)
        if holds_everywhere(finite):
            return self, np.zeros(0, dtype=np.int64)
        dropped = np.flatnonzero(~finite).astype(np.int64)
        return Signal(*(np.where(finite, getattr(self, name), 0.0) for name in _FIELDS)), dropped


def mean_losses(
    observed: Signal | ArrayLike,
    num_domains: int,
    *,
    where: str,
    step: int,
    domains: Sequence[str] | None = None,
) -> tuple[FloatArray, BoolArray]:
    """Checks what a step observed.

    Args:
        observed: A signal, or mean losses in nats, shape (K,), nan for absent domains.
        num_domains: Number of domains K.
        where: Beginning of an error message.
        step: Optimizer step of the losses, for an error message.
        domains: Names of the domains, for an error message; None shows their numbers.

    Returns:
        Mean losses, nan for absent domains, and whether each domain is present, both of shape (K,).

    Raises:
        ValueError: If the shape is wrong or a loss is not finite.
    """
    if isinstance(observed, Signal):
        losses, present = observed.mean_loss(), observed.token_count > 0
    else:
        losses = number_array(f"{where}: losses at step {step}", observed)
        present = ~np.isnan(losses)
    if losses.shape != (num_domains,):
        raise ValueError(
            f"{where}: expected losses of {counted(num_domains, 'domain')} at step {step}, got "
            f"shape {losses.shape}"
        )
    is_right = np.isfinite(losses) | ~present
    if not holds_everywhere(is_right):
        wrong = int(is_right.argmin())
        name = wrong if domains is None else repr(domains[wrong])
        raise ValueError(
            f"{where}: loss of domain {name} at step {step} is {losses[wrong]}, must be finite; "
            "on steps that overflowed, pass Signal.drop_nonfinite()"
        )
    return losses, present
