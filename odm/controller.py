"""The one object that a trainer needs: it plans the next step and learns from the last one."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from .arguments import check_kind, new_step, whole_number
from .constraints import Constraint, ConstraintContext, apply_constraints, check_constraints
from .decision import Decision, make_decision
from .guard import Guard, GuardedRun
from .held_out import check_held_out
from .json_data import SchemaError, copied
from .methods import RewardSource
from .mixers import Mixer, make_mixer
from .observation import Observation
from .read_ahead import ReadAhead
from .rewards import Reward
from .saved_state import SCHEMA_VERSION, check_saved_state, count_updates
from .schedule import Draw, MixtureSchedule
from .signal import Signal, mean_losses
from .simplex import BoolArray, FloatArray, IntArray, check_domains, check_weights
from .wording import counted

if TYPE_CHECKING:
    from .held_out import HeldOut

logger = logging.getLogger(__name__)


def is_update_due(step: int, *, warmup_steps: int, update_frequency: int) -> bool:
    """Whether the mixer is asked at a step, counted from 1; only after the warm-up."""
    return step > warmup_steps and step % update_frequency == 0


class MixtureController:
    """A mixer, constraints and a schedule, with warm-up, update frequency and an audit record.

    Use it in the order draw(step), train, observe(step). Every rank has one and gives it the same
    all-reduced signal, so that all ranks make the same plan without communication.

    Args:
        domains: Unique names; their order is the order of every array of length K.
        mixer: The method, or its registered name with default options.
        schedule: Draws the plans; its ``num_domains`` must be K.
        constraints: Limits on the weights, applied at every step, also during warm-up.
        reward: The losses that the mixer learns from, or the name of their source.
        initial_weights: Raw weights of the first draws, shape (K,); None makes all equal.
        warmup_steps: Up to and including this step, the mixer is not asked.
        update_frequency: The mixer is asked at steps that are a multiple of this number.
        total_steps: Steps of the whole run, for methods that plan ahead; None if it is not known.

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
        reward: Reward | RewardSource = "train",
        initial_weights: ArrayLike | None = None,
        warmup_steps: int = 0,
        update_frequency: int = 1,
        total_steps: int | None = None,
    ) -> None:
        self.domains = check_domains(domains)
        self.mixer = make_mixer(mixer) if isinstance(mixer, str) else mixer
        self.schedule = schedule
        self.constraints = check_constraints(constraints)
        self.reward = Reward(reward) if isinstance(reward, str) else reward
        check_kind("controller: mixer", self.mixer, Mixer, example='make_mixer("learning_curve")')
        check_kind("schedule", schedule, MixtureSchedule, example="MixtureSchedule(7, 3)")
        check_kind("controller: reward", self.reward, Reward, example='Reward("heldout")')
        self.reward.check_method(self.mixer.name, self.mixer.method)
        self._limits = tuple(limit for limit in constraints if not isinstance(limit, Guard))
        num_domains, planned = len(self.domains), schedule.num_domains
        if planned != num_domains:
            raise ValueError(
                f"controller: the schedule is for {counted(planned, 'domain')}, the list has "
                f"{num_domains}"
            )
        self.warmup_steps = whole_number("controller: warmup_steps", warmup_steps)
        self.update_frequency = whole_number("controller: update_frequency", update_frequency, 1)
        self.total_steps = total_steps
        if total_steps is not None:
            self.total_steps = whole_number("controller: total_steps", total_steps, 1)
        raw = np.ones(num_domains) if initial_weights is None else initial_weights
        self._initial = check_weights(raw, num_domains, where="controller: initial_weights")
        self._state = self.mixer.init(self.domains, self._initial)
        self._updates = 0  # number of updates of the mixer
        self._ahead = ReadAhead()
        proposal = self.mixer.weights_at(0, self._initial)
        self._guard: GuardedRun | None = None
        weights, effects = self._constrain(proposal, previous=proposal)
        guards = [limit for limit in constraints if isinstance(limit, Guard)]
        if len(guards) > 1:
            raise ValueError(f"controller: {len(guards)} guards; give one")
        if guards:
            self._guard = GuardedRun(guards[0], weights)
            weights, effects = self._constrain(proposal, previous=proposal)
        self._decision = make_decision(0, weights, proposal=proposal, effects=effects)

    @property
    def num_domains(self) -> int:
        """Number of domains K."""
        return len(self.domains)

    @property
    def weights(self) -> FloatArray:
        """Copy of the probabilities of the next draw, float64, shape (K,)."""
        return self._decision.weights_after.copy()

    @property
    def initial_weights(self) -> FloatArray:
        """Copy of the raw initial weights as given, float64, shape (K,)."""
        return self._initial.copy()

    @property
    def cursors(self) -> IntArray:
        """Copy of the next sample number of each domain, int64, shape (K,)."""
        return self.schedule.cursors

    @property
    def estimate(self) -> list[float] | None:
        """The mixer's estimate per domain, see ``Mixer.estimate``; None if it has none."""
        name = self.mixer.estimate
        return None if name is None else list(self._state[name])

    @property
    def last_decision(self) -> dict[str, Any]:
        """`Decision` of the last ``observe``, or of the start or last load, as JSON data."""
        return self._decision.to_dict()

    def is_update_due(self, step: int) -> bool:
        """Whether the losses of this step change the weights; see ``warmup_steps``."""
        return is_update_due(
            step, warmup_steps=self.warmup_steps, update_frequency=self.update_frequency
        )

    def draw(self, step: int, num_slots: int, run_length: int = 1) -> Draw:
        """Plans a step and advances the cursors; see ``odm.schedule.plan_draw``.

        Args:
            step: Step that will train on this plan, counted from 1; not observed yet.
            num_slots: Samples of the global batch.
            run_length: Consecutive slots that share a domain.
        """
        step = new_step("controller: draw", step, after=self._decision.step)
        weights = self._ahead.weights_of(step, self._decision.weights_after)
        cursors = self.schedule.cursors
        quotas = None
        if self._guard is not None:
            quotas = self._guard.groups_left(
                step, cursors, num_slots=num_slots, run_length=run_length
            )
        draw = self.schedule.draw(step, weights, num_slots, run_length, groups_left=quotas)
        self._ahead.add(step, weights, cursors)
        return draw

    def adopt_draw(
        self, step: int, *, weights: FloatArray | None = None, cursors: IntArray | None = None
    ) -> None:
        """Takes over a draw that was made elsewhere, for replays; use it in the place of ``draw``.

        Args:
            step: The step that trained on the draw, counted from 1.
            weights: Probabilities with which it was drawn, shape (K,); None: this object's own.
            cursors: Cursors after it, shape (K,); None leaves them as they are.
        """
        before = self.schedule.cursors
        if cursors is not None:
            self.schedule.set_cursors(cursors)
        if weights is not None:
            self._ahead.add(step, weights, before)

    def observe(
        self, step: int, observed: Signal | ArrayLike, *, held_out: HeldOut | None = None
    ) -> Decision:
        """Learns from the losses of a step.

        Losses of steps without a due update are discarded, as in the research code, unless the
        method asks for every step (``Method.every_step``).

        Args:
            step: The step of the losses, counted from 1.
            observed: A signal summed over all ranks, or mean losses, shape (K,), nan for absent
                domains.
            held_out: Losses on held-out data over all ranks, in a step that measured them.

        Returns:
            The decision; its ``weights_after`` are the probabilities of the next draw.

        Raises:
            ValueError: If a shape is wrong or a loss of a present domain is not finite, also during
                warm-up. On steps that overflowed, pass ``Signal.drop_nonfinite()``. Also if this
                step or a later one has been observed already.
        """
        step = new_step("controller: observe", step, after=self._decision.step)
        losses, present = mean_losses(
            observed, self.num_domains, where="controller", step=step, domains=self.domains
        )
        last = self._decision
        before, proposal, is_due = last.weights_after, last.proposal, self.is_update_due(step)
        drew = self._ahead.complete(step)
        if is_due or self.mixer.method.every_step:
            used = before if drew is None else drew
            observation = self._observation(
                step, observed, losses, present, weights_used=used, held_out=held_out
            )
            is_due = is_due and self.mixer.has_losses(observation)
            proposal = self._learn(observation, is_due=is_due)
        if self._guard is not None:
            counts = observed.token_count if isinstance(observed, Signal) else 1.0 * present
            self._guard.observe(step, losses, counts, cursors=self.schedule.cursors)
        weights, effects = before, last.constraints
        if is_due or self.constraints:
            weights, effects = self._constrain(proposal, previous=before)
        self._decision = make_decision(
            step,
            weights,
            before=before,
            proposal=proposal,
            effects=effects,
            losses=losses,
            updated=is_due,
        )
        return self._decision

    def _observation(
        self,
        step: int,
        observed: Signal | ArrayLike,
        losses: FloatArray,
        present: BoolArray,
        *,
        weights_used: FloatArray,
        held_out: HeldOut | None,
    ) -> Observation:
        """What the mixer may know about a step: checked losses, made by the reward."""
        check_held_out(held_out, self.num_domains, step=step, where="controller")
        follows = self.reward.needs_held_out
        reward = Reward() if follows and self.mixer.method.sees_both else self.reward
        signal = observed if isinstance(observed, Signal) else None
        cursors = None
        if self.mixer.depends_on_cursors:  # without plans for later steps
            cursors, _ = self._ahead.saved(self.schedule.cursors, step)
        return Observation(
            step,
            *reward.losses(losses, present, held_out),
            weights_used,
            signal=None if reward.needs_held_out else signal,
            held_out=held_out if follows else None,
            total_steps=self.total_steps,
            samples_read=cursors,
        )

    def _learn(self, observation: Observation, *, is_due: bool) -> FloatArray:
        """Gives a step to the mixer; returns its newest proposal."""
        if is_due:
            self._state, proposal = self.mixer.update_checked(self._state, observation)
            self._updates += self.mixer.method.learns
            return proposal
        if self.mixer.method.every_step:
            self._state = self.mixer.observe_checked(self._state, observation)
        return self._decision.proposal

    def describe(self) -> dict[str, Any]:
        """The configuration as JSON data, for the run log and for ``replay``."""
        length = {"total_steps": self.total_steps} if self.mixer.method.uses_length else {}
        reward = {"reward": self.reward.options()} if self.reward.needs_held_out else {}
        return {
            "domains": list(self.domains),
            "method": self.mixer.name,
            "options": self.mixer.options(),
            "initial_weights": self._initial.tolist(),
            "warmup_steps": self.warmup_steps,
            "update_frequency": self.update_frequency,
            **length,
            **reward,
            "constraints": [constraint.options() for constraint in self.constraints],
            "seed": self.schedule.seed,
            "stratified": self.schedule.stratified,
        }

    def fingerprint(self) -> int:
        """32-bit checksum of weights and cursors, to check that they are the same on all ranks."""
        return zlib.crc32(self.schedule.cursors.data, zlib.crc32(self._decision.weights_after.data))

    def mixer_state(self) -> dict[str, Any]:
        """Copy of the mixer's state, JSON data whose fields depend on the method."""
        return copied(self._state)

    def state_dict(self, *, completed_step: int | None = None) -> dict[str, Any]:
        """Everything that a restart needs, as JSON data; JSON keeps floats exactly.

        The state does not depend on the number of ranks. Its ``configuration`` is from
        ``describe``.

        Args:
            completed_step: Last trained step, for a trainer that draws ahead. Plans for later steps
                do not count, so that their samples are read after a restart; only the weights of
                these plans are saved, so that the same plans are drawn again. None counts every
                plan.
        """
        cursors, planned = self._ahead.saved(self.schedule.cursors, completed_step)
        return {
            "schema_version": SCHEMA_VERSION,
            "configuration": self.describe(),
            "step": self._decision.step,
            "updates": self._updates,
            "weights": self._decision.weights_after.tolist(),
            "proposal": self._decision.proposal.tolist(),
            "mixer": copied(self._state),
            "cursors": cursors.tolist(),
            **({} if self._guard is None else {"guard": self._guard.state_dict()}),
            "planned": {str(step): weights.tolist() for step, weights in planned.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a state of ``state_dict``; changes nothing if it raises an error.

        Domains, their order and the method must be the same. If an option, seed, constraint or
        frequency differs, this object's value is used, not the state's, and a warning reports it;
        limits apply from the next draw on. Different initial weights have an effect only if the
        mixer has not learnt anything yet, so with ``static`` always. A different schedule applies
        from the next draw on.

        Raises:
            ValueError: If the state is of another schema, method or list of domains, or damaged
                (one line that names the field), or its weights cannot satisfy the constraints of
                this object.
        """
        try:
            saved = check_saved_state(state, self.domains, self.mixer)
        except ValueError as error:
            raise SchemaError(f"state: {error}") from None
        weights, proposal = (
            np.array(state[name], dtype=np.float64) for name in ("weights", "proposal")
        )
        plans = state.get("planned", {})  # not in states of early versions
        planned = {int(step): np.array(plans[step], dtype=np.float64) for step in plans}
        mixer_state, updates = copied(state["mixer"]), count_updates(state, self.mixer)
        changed = self._changed(saved)
        follows_steps = self.mixer.method.follows_steps
        restarts = updates == 0 and "initial_weights" in changed
        restarts = restarts or (follows_steps and bool({"options", "initial_weights"} & {*changed}))
        if restarts:
            mixer_state = self.mixer.init(self.domains, self._initial)
            proposal = self.mixer.weights_at(state["step"], self._initial)
        effects: dict[str, Any] = {}
        cursors, guard = self.schedule.cursors, self._guard
        self.schedule.set_cursors(state["cursors"])
        if guard is not None:
            self._guard = guard.loaded(
                state.get("guard"), cursors=self.schedule.cursors, step=state["step"]
            )
        if restarts or "constraints" in changed:
            planned = {}
            try:
                weights, effects = self._constrain(proposal, previous=weights)
            except ValueError:
                self.schedule.set_cursors(cursors)
                self._guard = guard
                raise
        self._say_changed(changed, restarts=restarts)
        self._state, self._updates = mixer_state, updates
        self._ahead = ReadAhead(planned)
        self._decision = make_decision(state["step"], weights, proposal=proposal, effects=effects)

    def _changed(self, saved: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Settings that differ -> the saved value and the present one."""
        current = {"reward": None, **self.describe()}  # both leave out the reward of training
        return {key: (saved.get(key), v) for key, v in current.items() if saved.get(key) != v}

    def _say_changed(self, changed: Mapping[str, tuple[Any, Any]], *, restarts: bool) -> None:
        for key, (was, now) in changed.items():
            is_late = key == "initial_weights" and not restarts
            end = "; without effect: the weights follow the losses since then" if is_late else ""
            logger.warning("mixture: %s was %s, now %s%s", key, was, now, end)

    def _constrain(
        self, proposal: FloatArray, *, previous: FloatArray
    ) -> tuple[FloatArray, dict[str, Any]]:
        if not self.constraints:
            return proposal, {}
        context = ConstraintContext(previous, self.schedule.cursors)
        if self._guard is not None:
            return self._guard.constrained(self._limits, proposal, context=context)
        return apply_constraints(self._limits, proposal, context=context)
