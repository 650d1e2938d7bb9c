"""The one object that a trainer needs: it plans the next step and learns from the last one."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .constraints import Constraint, ConstraintContext, apply_constraints
from .json_data import SchemaError, copied
from .mixers import Mixer, make_mixer
from .saved_state import SCHEMA_VERSION, check_saved_state
from .schedule import Draw, MixtureSchedule
from .signal import Signal
from .simplex import (
    BoolArray,
    FloatArray,
    IntArray,
    check_domains,
    check_weights,
    holds_everywhere,
    normalize,
)

logger = logging.getLogger(__name__)

_MAX_PENDING = 1024


class _Pending(NamedTuple):
    weights: FloatArray
    cursors: IntArray


class _Audit(NamedTuple):
    step: int
    updated: bool
    before: FloatArray
    losses: FloatArray | None
    effects: dict[str, Any]


def is_update_due(step: int, *, warmup_steps: int, update_frequency: int) -> bool:
    """Whether the mixer is asked at a step, counted from 1: strictly after the warm-up."""
    return step > warmup_steps and step % update_frequency == 0


class MixtureController:
    """A mixer, constraints and a schedule, with warm-up, update frequency and an audit record.

    Use it in the order draw(step), train, observe(step). Every rank holds one and feeds it the
    same all-reduced signal, so that all ranks make the same plan without talking.

    Args:
        domains: Unique names; their order is the order of every array of length K.
        mixer: The method, or its registered name with default options.
        schedule: Draws the plans; its ``num_domains`` must be K.
        constraints: Limits on the weights, applied at every step, warm-up included.
        initial_weights: Raw weights of the first draws, shape (K,); None: all equal.
        warmup_steps: The mixer is not asked at steps up to and including this one.
        update_frequency: The mixer is asked at steps that are a multiple of this one.

    Raises:
        ValueError: If domains, weights, counts or constraints do not fit together.
    """

    def __init__(
        self,
        domains: Sequence[str],
        mixer: Mixer | str,
        schedule: MixtureSchedule,
        constraints: Sequence[Constraint] = (),
        *,
        initial_weights: ArrayLike | None = None,
        warmup_steps: int = 0,
        update_frequency: int = 1,
    ) -> None:
        self.domains = check_domains(domains)
        self.mixer = make_mixer(mixer) if isinstance(mixer, str) else mixer
        self.schedule = schedule
        self.constraints = tuple(constraints)
        num_domains = len(self.domains)
        if schedule.num_domains != num_domains:
            raise ValueError(
                f"controller: the schedule is for {schedule.num_domains} domains, "
                f"{num_domains} are named"
            )
        if warmup_steps < 0 or update_frequency < 1:
            raise ValueError(
                "controller: warmup_steps must be >= 0 and update_frequency >= 1, got "
                f"{warmup_steps} and {update_frequency}"
            )
        self.warmup_steps = int(warmup_steps)
        self.update_frequency = int(update_frequency)
        raw = np.ones(num_domains) if initial_weights is None else initial_weights
        self._initial = check_weights(raw, num_domains, where="controller: initial_weights")
        self._state = self.mixer.init(self.domains, self._initial)
        self._step = 0
        self._proposal = normalize(self._initial)
        self._weights, effects = self._constrain(self._proposal, previous=self._proposal)
        # With read-ahead, step t is drawn before t - 1 is observed: rewards that are divided by
        # the weight need the weight of the draw, and a saved state must not count the plan.
        self._pending: dict[int, _Pending] = {}
        # Weights of plans that the saved run had drawn ahead, which are drawn again.
        self._planned: dict[int, FloatArray] = {}
        self._audit = _Audit(0, False, self._weights, None, effects)

    @property
    def num_domains(self) -> int:
        """Number of domains K."""
        return len(self.domains)

    @property
    def weights(self) -> FloatArray:
        """Copy of the probabilities of the next draw, float64, shape (K,)."""
        return self._weights.copy()

    @property
    def initial_weights(self) -> FloatArray:
        """Copy of the raw initial weights as given, float64, shape (K,)."""
        return self._initial.copy()

    @property
    def cursors(self) -> IntArray:
        """Copy of the next sample number of every domain, int64, shape (K,)."""
        return self.schedule.cursors

    @property
    def last_decision(self) -> dict[str, Any]:
        """Audit record of the last ``observe`` (or of the start) as JSON data.

        ``step``, ``updated`` (whether the mixer was asked), ``weights_before``,
        ``weights_after``, ``proposal`` (the mixer's weights before constraints), ``losses``
        (null where absent; null before the first step), ``constraints`` (see
        ``apply_constraints``).
        """
        audit = self._audit
        losses = audit.losses
        return {
            "step": audit.step,
            "updated": audit.updated,
            "weights_before": audit.before.tolist(),
            "weights_after": self._weights.tolist(),
            "proposal": self._proposal.tolist(),
            "losses": None if losses is None else [None if x != x else x for x in losses.tolist()],
            "constraints": audit.effects,
        }

    def is_update_due(self, step: int) -> bool:
        """Whether the losses of this step move the weights; see ``warmup_steps``."""
        return is_update_due(
            step, warmup_steps=self.warmup_steps, update_frequency=self.update_frequency
        )

    def draw(self, step: int, num_slots: int, run_length: int = 1) -> Draw:
        """Plans a step and advances the cursors; see ``odm.schedule.plan_draw``.

        Args:
            step: Step that will be trained on this plan, counted from 1.
            num_slots: Samples of the global batch.
            run_length: Consecutive slots that share a domain.
        """
        pending = _Pending(self._planned.get(step, self._weights), self.schedule.cursors)
        draw = self.schedule.draw(step, pending.weights, num_slots, run_length=run_length)
        self._pending[step] = pending
        if len(self._pending) > _MAX_PENDING:  # a trainer that never observes
            del self._pending[next(iter(self._pending))]
        return draw

    def observe(self, step: int, observed: Signal | ArrayLike) -> FloatArray:
        """Learns from the losses of a step.

        Losses of steps without a due update are discarded, as in the research code.

        Args:
            step: The step that made the losses, counted from 1.
            observed: A signal summed over all ranks, or mean losses, shape (K,), nan = absent.

        Returns:
            Copy of the probabilities of the next draw, shape (K,).

        Raises:
            ValueError: If a shape is wrong or a loss of a present domain is not finite, in warm-up
                too: give ``Signal.drop_nonfinite()`` on steps that overflowed.
        """
        losses, present = self._mean_losses(step, observed)
        before = self._weights
        used = self._pending[step].weights if step in self._pending else before
        self._pending = {later: plan for later, plan in self._pending.items() if later > step}
        self._planned = {later: w for later, w in self._planned.items() if later > step}
        is_due = self.is_update_due(step) and bool(np.count_nonzero(present))
        if is_due:
            self._state, self._proposal = self.mixer.update_checked(
                self._state, step, np.where(present, losses, 0.0), present, used
            )
        if is_due or self.constraints:
            self._weights, effects = self._constrain(self._proposal, previous=before)
        else:
            effects = self._audit.effects
        self._step = int(step)
        self._audit = _Audit(self._step, is_due, before, losses, effects)
        return self.weights

    def describe(self) -> dict[str, Any]:
        """What the run is configured to do, as JSON data, for the run log and for ``replay``."""
        return {
            "domains": list(self.domains),
            "method": self.mixer.name,
            "options": self.mixer.options(),
            "initial_weights": self._initial.tolist(),
            "warmup_steps": self.warmup_steps,
            "update_frequency": self.update_frequency,
            "constraints": [constraint.options() for constraint in self.constraints],
            "seed": self.schedule.seed,
            "stratified": self.schedule.stratified,
        }

    def fingerprint(self) -> int:
        """32-bit checksum of weights and cursors, to compare ranks that must hold them alike."""
        return zlib.crc32(self.schedule.cursors.data, zlib.crc32(self._weights.data))

    def mixer_state(self) -> dict[str, Any]:
        """Copy of the mixer's numbers, JSON data whose fields depend on the method."""
        return copied(self._state)

    def state_dict(self, *, completed_step: int | None = None) -> dict[str, Any]:
        """Everything that a restart needs, as JSON data; floats survive JSON exactly.

        It does not depend on the number of ranks. ``configuration`` is what ``describe`` gives.

        Args:
            completed_step: Last trained step, for a trainer that draws ahead: plans drawn for
                later steps are left out, so that their samples are read after a restart; of these
                plans only the weights are kept, so that they are drawn again alike. None counts
                every plan.
        """
        cursors = self.schedule.cursors
        planned = {step: w for step, w in self._planned.items() if step not in self._pending}
        if completed_step is not None:
            later = {step: plan for step, plan in self._pending.items() if step > completed_step}
            cursors = later[min(later)].cursors if later else cursors
            planned.update({step: plan.weights for step, plan in later.items()})
        return {
            "schema_version": SCHEMA_VERSION,
            "configuration": self.describe(),
            "step": self._step,
            "weights": self._weights.tolist(),
            "proposal": self._proposal.tolist(),
            "mixer": copied(self._state),
            "cursors": cursors.tolist(),
            "planned": {str(step): weights.tolist() for step, weights in planned.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where ``state_dict`` was taken; changes nothing if it raises.

        Domains, their order and the method must be the same. Another option, seed, constraint or
        frequency is taken from this object, not from the state, and logged as a warning; limits
        hold from the next draw on. Other initial weights count where the mixer has not learnt
        anything yet, so with ``static`` always.

        Raises:
            ValueError: If the state is of another schema, method or list of domains, or torn (one
                line that names the field), or its weights cannot keep the constraints of this
                object.
        """
        fresh = self.mixer.init(self.domains, self._initial)
        try:
            saved = check_saved_state(state, self.domains, self.mixer)
        except ValueError as error:
            raise SchemaError(f"state: {error}") from None
        weights, proposal = (
            np.array(state[name], dtype=np.float64) for name in ("weights", "proposal")
        )
        plans = state.get("planned", {})  # states of early versions lack it
        planned = {int(step): np.array(plans[step], dtype=np.float64) for step in plans}
        mixer_state, changed = copied(state["mixer"]), self._changed(saved)
        starts_anew = "initial_weights" in changed and self._is_fresh(saved, mixer_state, proposal)
        if starts_anew:
            mixer_state, proposal = fresh, normalize(self._initial)
        effects: dict[str, Any] = {}
        cursors = self.schedule.cursors
        self.schedule.set_cursors(state["cursors"])
        if starts_anew or "constraints" in changed:
            planned = {}
            try:
                weights, effects = self._constrain(proposal, previous=weights)
            except ValueError:
                self.schedule.set_cursors(cursors)
                raise
        self._say_changed(changed, starts_anew=starts_anew)
        self._weights, self._proposal = weights, proposal
        self._state = mixer_state
        self._step = state["step"]
        self._pending, self._planned = {}, planned
        self._audit = _Audit(self._step, False, weights, None, effects)

    def _changed(self, saved: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Settings that differ: as saved and as they are."""
        current = self.describe()
        return {key: (saved.get(key), v) for key, v in current.items() if saved.get(key) != v}

    def _is_fresh(
        self, saved: Mapping[str, Any], mixer_state: Mapping[str, Any], proposal: FloatArray
    ) -> bool:
        """Whether a saved mixer is as before its first update, which ``static`` always is."""
        initial = np.array(saved.get("initial_weights", ()), dtype=np.float64)
        return (
            initial.shape == proposal.shape
            and mixer_state == self.mixer.init(self.domains, initial)
            and np.array_equal(proposal, normalize(initial))
        )

    def _say_changed(self, changed: Mapping[str, tuple[Any, Any]], *, starts_anew: bool) -> None:
        for key, (was, now) in changed.items():
            is_late = key == "initial_weights" and not starts_anew
            end = "; without effect: the weights follow the losses since then" if is_late else ""
            logger.warning("mixture: %s was %s, now %s%s", key, was, now, end)

    def _mean_losses(self, step: int, observed: Signal | ArrayLike) -> tuple[FloatArray, BoolArray]:
        """Checked mean losses, nan where absent, and which domains are present, shape (K,)."""
        if step < 1:
            raise ValueError(f"controller: steps are counted from 1, got {step}")
        if isinstance(observed, Signal):
            losses, present = observed.mean_loss(), observed.token_count > 0
        else:
            losses = np.array(observed, dtype=np.float64)
            present = ~np.isnan(losses)
        if losses.shape != (self.num_domains,):
            raise ValueError(
                f"controller: expected losses of {self.num_domains} domains at step {step}, got "
                f"shape {losses.shape}"
            )
        is_right = np.isfinite(losses) | ~present
        if not holds_everywhere(is_right):
            wrong = int(is_right.argmin())
            raise ValueError(
                f"controller: loss of domain {self.domains[wrong]!r} at step {step} is "
                f"{losses[wrong]}, must be finite; on steps that overflowed give "
                "Signal.drop_nonfinite()"
            )
        return losses, present

    def _constrain(
        self, proposal: FloatArray, *, previous: FloatArray
    ) -> tuple[FloatArray, dict[str, Any]]:
        if not self.constraints:
            return proposal, {}
        context = ConstraintContext(previous, self.schedule.cursors)
        return apply_constraints(self.constraints, proposal, context=context)
