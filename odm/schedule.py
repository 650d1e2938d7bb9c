"""Plans which domain, and which of its samples, each slot of a global batch reads.

The plan of a step is a pure function of (seed, step, weights, cursors). Randomness is counter
based (Philox keyed by seed and step), so there is no generator state: only one cursor per domain
must be saved, and the plan does not depend on how slots are distributed over ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arguments import refuse_argument, whole_number, wrong_values
from .simplex import FloatArray, IntArray, holds_everywhere
from .wording import counted, shown

# A 53-bit integer times this is a float64 in [0, 1), without rounding.
_UNIT_53 = 2.0**-53
MAX_KEY = 2**64
"""Seeds and steps are below this."""
MAX_CURSOR = 2**62
"""The largest cursor, equal to the largest epoch in samples, see `odm.order`."""

_FEW_SLOTS = 64
"""For up to this many slots, a loop in Python is faster than six numpy functions."""


@dataclass(frozen=True, eq=False)
class Draw:
    """The plan of one step: slot i reads sample ``positions[i]`` of domain ``domains[i]``."""

    step: int
    """Optimizer step that the plan is for."""
    domains: IntArray
    """Domain index of each slot, int64, shape (num_slots,)."""
    positions: IntArray
    """Sample number within the domain, counted from 0 over all its epochs, shape (num_slots,)."""

    @property
    def num_slots(self) -> int:
        """Slots of the global batch."""
        return int(self.domains.size)

    def counts(self, num_domains: int) -> IntArray:
        """Number of slots per domain, int64, shape (num_domains,)."""
        return np.bincount(self.domains, minlength=num_domains).astype(np.int64, copy=False)


class _RandomSource:
    """Random integers as a function of seed and step: Philox, keyed by both.

    One generator is made once and then set to each key. Making one takes numpy several times
    longer, since it collects system entropy for a seed that is not used.
    """

    def __init__(self) -> None:
        self._philox = np.random.Philox(key=0)
        self._start = self._philox.state

    def integers(self, seed: int, step: int, count: int) -> NDArray[np.uint64]:
        """The first ``count`` 64-bit integers of the key (seed, step)."""
        self._start["state"]["key"][:] = seed, step
        self._philox.state = self._start
        return self._philox.random_raw(count)


def plan_draw(
    seed: int,
    step: int,
    *,
    weights: ArrayLike,
    cursors: IntArray,
    num_slots: int,
    run_length: int = 1,
    stratified: bool = False,
    groups_left: IntArray | None = None,
) -> Draw:
    """Plans a step without side effects.

    Args:
        seed: Non-negative run seed below 2^64.
        step: Non-negative step below 2^64.
        weights: Shape (K,), not negative, at least one positive; normalised here.
        cursors: Next sample number of each domain, int64, shape (K,).
        num_slots: Samples of the global batch.
        run_length: Consecutive slots that share a domain (1: each slot has its own; the micro-batch
            size: one domain per micro-batch). Must divide ``num_slots``.
        stratified: False draws every group independently: group i depends only on (seed, step, i)
            and the weights. True takes equally spaced quantiles with one random offset, in random
            order: each domain's number of groups differs from its expectation by less than one.
        groups_left: Most groups that each domain may get, int64, shape (K,), with a sum of at least
            ``num_slots / run_length``. Groups above that go to domains with groups left, by their
            weights, or to any of them if none has a weight. None: no limit.

    Raises:
        ValueError: If a value is out of range.
    """
    return _plan(
        _RandomSource(),
        seed,
        step,
        weights=weights,
        cursors=cursors,
        num_slots=num_slots,
        run_length=run_length,
        stratified=stratified,
        groups_left=groups_left,
    )


def _plan(
    source: _RandomSource,
    seed: int,
    step: int,
    *,
    weights: ArrayLike,
    cursors: IntArray,
    num_slots: int,
    run_length: int,
    stratified: bool,
    groups_left: IntArray | None,
) -> Draw:
    """``plan_draw`` with a random source that is reused; its state does not affect the plan."""
    seed = whole_number("schedule: seed", seed, 0, MAX_KEY - 1)
    step = whole_number("schedule: step", step, 0, MAX_KEY - 1)
    num_slots = whole_number("schedule: num_slots", num_slots, 1)
    run_length = whole_number("schedule: run_length", run_length, 1)
    if num_slots % run_length:
        raise ValueError(
            f"schedule: num_slots must be a multiple of run_length, got {num_slots} and "
            f"{run_length}"
        )
    edges = _cumulative(weights, cursors.size)
    num_groups = num_slots // run_length
    raw = source.integers(seed, step, num_groups + stratified)
    if stratified:
        points = (np.arange(num_groups) + (raw[0] >> np.uint64(11)) * _UNIT_53) / num_groups
        uniforms = points[np.argsort(raw[1:], kind="stable")]
    else:
        uniforms = (raw >> np.uint64(11)) * _UNIT_53
    groups = edges.searchsorted(uniforms, side="right")
    if stratified:  # rounding can raise the last point to 1.0, which is the last edge
        groups = np.minimum(groups, _last_used(edges))
    if groups_left is not None:
        groups = _within_quotas(groups, np.asarray(weights, dtype=np.float64), groups_left)
    domains = groups if run_length == 1 else np.repeat(groups, run_length)
    return Draw(step, domains, cursors[domains] + _occurrences(domains, cursors.size))


class MixtureSchedule:
    """Draws plans and advances one cursor per domain; the cursors are its whole state.

    Args:
        seed: Run seed, in [0, 2^64), the same on every rank.
        num_domains: Number of domains K.
        stratified: Whether each domain gets about its expected number of slots, see ``plan_draw``.
    """

    def __init__(self, seed: int, num_domains: int, *, stratified: bool = False) -> None:
        self.seed = whole_number("schedule: seed", seed, 0, MAX_KEY - 1)
        self.num_domains = whole_number("schedule: num_domains", num_domains, 1)
        if not isinstance(stratified, (bool, np.bool_)):  # a text such as "false" is true
            refuse_argument("schedule: stratified", "True or False", stratified)
        self.stratified = bool(stratified)
        self._cursors = np.zeros(self.num_domains, dtype=np.int64)
        self._source = _RandomSource()

    @property
    def cursors(self) -> IntArray:
        """Copy of the next sample number of every domain, int64, shape (K,)."""
        return self._cursors.copy()

    def set_cursors(self, cursors: Sequence[int] | IntArray) -> None:
        """Sets the cursors, to those of a saved run.

        Raises:
            ValueError: If the number of cursors is wrong or one is not an integer in [0, 2^62].
        """
        values = np.array(cursors)
        if values.shape != (self.num_domains,) or values.dtype.kind not in "iu":
            raise ValueError(
                f"schedule: expected {counted(self.num_domains, 'integer cursor')}, got "
                f"{shown(cursors)}"
            )
        is_right = (values >= 0) & (values <= MAX_CURSOR)
        if not holds_everywhere(is_right):
            got = wrong_values(values, is_right)
            raise ValueError(f"schedule: cursors must be in [0, 2^62], got {got}")
        self._cursors = values.astype(np.int64)

    def draw(
        self,
        step: int,
        weights: ArrayLike,
        num_slots: int,
        run_length: int = 1,
        *,
        groups_left: IntArray | None = None,
    ) -> Draw:
        """Plans a step and advances the cursors by it; arguments as in ``plan_draw``."""
        draw = _plan(
            self._source,
            self.seed,
            step,
            weights=weights,
            cursors=self._cursors,
            num_slots=num_slots,
            run_length=run_length,
            stratified=self.stratified,
            groups_left=groups_left,
        )
        self._cursors = self._cursors + draw.counts(self.num_domains)
        return draw


def _within_quotas(groups: IntArray, weights: FloatArray, groups_left: IntArray) -> IntArray:
    """Moves groups of domains that have more than they may have, shape (num_groups,)."""
    room = groups_left - np.bincount(groups, minlength=groups_left.size)
    if holds_everywhere(room >= 0):
        return groups
    moved = np.flatnonzero(_occurrences(groups, groups_left.size) >= groups_left[groups])
    room = np.maximum(room, 0)
    taken: list[IntArray] = []
    missing = moved.size
    while missing:
        if not room.any():
            raise ValueError(
                f"schedule: the quotas leave {groups_left.sum()} groups for {groups.size}"
            )
        share = np.where(room > 0, weights, 0.0)
        edges = _cumulative(share if share.any() else room, room.size)
        points = (np.arange(missing) + 0.5) / missing
        wanted = np.bincount(edges.searchsorted(points, side="right"), minlength=room.size)
        added = np.minimum(wanted, room)
        taken.append(np.repeat(np.arange(room.size), added))
        room = room - added
        missing -= int(added.sum())
    groups = groups.copy()
    groups[moved] = np.concatenate(taken)
    return groups


def _cumulative(weights: ArrayLike, num_domains: int) -> FloatArray:
    """Upper edges of the domains on [0, 1], float64, shape (K,); the last one is exactly 1."""
    values = np.asarray(weights, dtype=np.float64)
    if values.shape != (num_domains,):
        raise ValueError(
            f"schedule: expected {counted(num_domains, 'weight')}, one per domain, got shape "
            f"{values.shape}"
        )
    edges = values.cumsum()
    if not (holds_everywhere(values >= 0) and 0 < edges[-1] < np.inf):
        got = wrong_values(values, (values > 0) & (values < np.inf))
        raise ValueError(f"schedule: weights must be finite, not negative and not all 0, got {got}")
    edges /= edges[-1]
    return edges


def _last_used(edges: FloatArray) -> int:
    """Index of the last domain with a positive weight."""
    return int(edges.searchsorted(edges[-1], side="left"))


def _occurrences(domains: IntArray, num_domains: int) -> IntArray:
    """Number of earlier slots with the same domain, int64, shape (num_slots,)."""
    if domains.size <= _FEW_SLOTS:
        seen, earlier = [0] * num_domains, []
        for domain in domains.tolist():
            earlier.append(seen[domain])
            seen[domain] += 1
        return np.array(earlier, dtype=np.int64)
    # numpy uses radix sort for 16-bit integers, four times as fast as sorting 64-bit ones.
    keys = domains.astype(np.uint16) if num_domains <= 1 << 16 else domains
    order = keys.argsort(kind="stable")
    counts = np.bincount(domains, minlength=num_domains)
    first = counts.cumsum() - counts
    occurrences = np.empty(domains.size, dtype=np.int64)
    occurrences[order] = np.arange(domains.size) - first[domains[order]]
    return occurrences
