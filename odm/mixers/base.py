"""The interface of a mixing method, its input checks, and the registry of names.

A mixer is two pure functions on plain data. ``init`` makes a state, ``update`` turns a state and
one step's losses into the next state and the next weights. A state is JSON data (numbers, lists,
None), so that saving, comparing and replaying need no further code.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from ..arguments import check_one_per_domain, whole_number, whole_numbers
from ..held_out import HeldOut, check_held_out
from ..json_data import Check, anything, is_number, list_of, number, plain
from ..methods import METHODS, Method
from ..observation import Observation
from ..signal import Signal, mean_losses
from ..simplex import FloatArray, IntArray, check_domains, check_weights, normalize
from ..wording import shown

State = dict[str, Any]

# Far above any loss divided by any weight. If rewards overflowed, their softmax would be nan.
MAX_REWARD = 1e290


class Mixer(ABC):
    """A mixing method; subclasses are frozen dataclasses whose fields are the method's options."""

    name: ClassVar[str] = ""
    method: ClassVar[Method] = Method()
    """Facts that a trainer needs; for the methods of this library, their row in `METHODS`."""
    min_domains: ClassVar[int] = 2
    estimate: ClassVar[str | None] = None
    """Entry of the state, one number per domain, that the run log shows as the estimate."""

    @property
    def depends_on_cursors(self) -> bool:
        """Whether its weights depend on how many samples of each domain have been drawn."""
        return False

    @property
    def curve(self) -> str:
        """Name of the estimate's curves, as in the research code."""
        return f"_{self.estimate}"

    def options(self) -> dict[str, Any]:
        """Options as JSON data; ``make_mixer(name, **options)`` makes the same mixer."""
        fields = dataclasses.asdict(self)  # type: ignore[call-overload]
        return {key: _as_lists(plain(value)) for key, value in fields.items()}

    def init(self, domains: Sequence[str], weights: ArrayLike) -> State:
        """Makes the state before the first update.

        Args:
            domains: Unique names; their order is the order of every array of length K.
            weights: Raw initial weights, shape (K,), not necessarily normalised; no reference to
                them is kept.

        Raises:
            ValueError: If a name or a weight is not valid, or K is too small for the method.
        """
        names = check_domains(domains)
        if len(names) < self.min_domains:
            raise ValueError(
                f"{self.name}: needs at least {self.min_domains} domains, got {len(names)} "
                f"({', '.join(names)}); with one domain there is nothing to mix, use static"
            )
        return self._init(check_weights(weights, len(names), where=f"{self.name}: weights"))

    def weights_at(self, step: float, initial: FloatArray) -> FloatArray:
        """Probabilities of the draw after ``step`` if nothing has been learnt, shape (K,).

        Args:
            step: Last trained step; 0 before the first.
            initial: Raw initial weights, shape (K,).
        """
        return normalize(initial)

    def update(
        self,
        state: State,
        step: int,
        observed: Signal | ArrayLike,
        weights_used: ArrayLike,
        *,
        held_out: HeldOut | None = None,
        total_steps: int | None = None,
        samples_read: ArrayLike | None = None,
    ) -> tuple[State, FloatArray]:
        """Turns one step's losses into the next weights; no argument is changed.

        Args:
            state: What ``init`` or the last ``update`` returned.
            step: Optimizer step of the losses, counted from 1.
            observed: A signal, or mean losses in nats, shape (K,), nan for absent domains.
            weights_used: Weights with which this step's samples were drawn, shape (K,).
            held_out: Losses on held-out data, in a step that measured them.
            total_steps: Steps of the whole run, if that is known.
            samples_read: Samples of each domain that have been drawn since the start of the run,
                whole numbers, shape (K,), for methods whose ``depends_on_cursors`` is true.

        Returns:
            The next state and probabilities, shape (K,), float64. If every domain is absent, the
            state and the weights used are returned unchanged.

        Raises:
            ValueError: If a step is below 1, a shape is wrong, a loss is infinite, or an argument
                is of another kind.
        """
        if total_steps is not None:
            total_steps = whole_number(f"{self.name}: total_steps", total_steps, 1)
        step = whole_number(f"{self.name}: step", step, 1)
        used = normalize(check_weights(weights_used, np.size(weights_used), where=self.name))
        losses, present = mean_losses(observed, used.size, where=self.name, step=step)
        check_held_out(held_out, used.size, step=step, where=self.name)
        observation = Observation(
            step,
            np.where(present, losses, 0.0),
            present,
            used,
            signal=observed if isinstance(observed, Signal) else None,
            held_out=held_out,
            total_steps=total_steps,
            samples_read=None if samples_read is None else self._counts(samples_read, used.size),
        )
        return self.update_checked(state, observation)

    def _counts(self, samples: ArrayLike, count: int) -> IntArray:
        where = f"{self.name}: samples_read"
        numbers = whole_numbers(where, samples)
        check_one_per_domain(where, len(numbers), count)
        return np.array(numbers, dtype=np.int64)

    def update_checked(self, state: State, observation: Observation) -> tuple[State, FloatArray]:
        """As ``update``, for a caller that has already checked the observation."""
        if not self.has_losses(observation):
            return state, observation.weights_used
        return self._update(state, observation)

    def has_losses(self, observation: Observation) -> bool:
        """Whether a step has a loss of any domain that this method learns from."""
        is_measured = self.method.sees_both and observation.held_out is not None
        return is_measured or bool(np.count_nonzero(observation.present))

    def observe_checked(self, state: State, observation: Observation) -> State:
        """Takes in a step whose weights stay the same, for methods with ``every_step``.

        A step is given either to this function or to ``update_checked``, in their order. By default
        nothing is learnt from it.
        """
        return state

    def state_fields(self, initial: FloatArray, step: int) -> dict[str, Check]:
        """Checks of a saved state's fields; by default they require the form of a new state.

        Args:
            initial: Raw initial weights of the run, shape (K,).
            step: Last step that the state includes; 0 before the first.
        """
        return {name: _like(value) for name, value in self._init(initial).items()}

    def proposals(self, state: Mapping[str, Any], initial: FloatArray) -> list[FloatArray]:
        """Weights that may have been returned with a saved state, each of shape (K,).

        There may be several, since options may have changed. An empty list means that they do not
        follow from the state.

        Args:
            state: A state whose fields have passed their checks.
            initial: Raw initial weights of the run, shape (K,).

        Raises:
            ValueError: If the fields cannot belong to the same state.
        """
        return []

    @abstractmethod
    def _init(self, weights: FloatArray) -> State:
        """Makes the state from checked raw weights, shape (K,)."""

    @abstractmethod
    def _update(self, state: State, observation: Observation) -> tuple[State, FloatArray]:
        """Updates from checked input: finite losses, 0 for absent domains, at least one present.

        A method that sees both kinds of losses may get a measurement of held-out losses alone.

        Returns:
            The next state and probabilities, shape (K,), float64.
        """

    def _over_weights(self, losses: FloatArray, observation: Observation) -> FloatArray:
        """Losses divided by the weights of their draw, shape (K,), finite, 0 for absent domains.

        A domain of weight 0 may have a held-out loss; it counts as absent.

        Raises:
            ValueError: If a domain has a training loss that could not have been drawn.
        """
        present, used = observation.present, observation.weights_used
        wrong = np.flatnonzero(present & (used <= 0))
        if wrong.size and observation.held_out is not None:
            present = present & (used > 0)
            losses = np.where(present, losses, 0.0)
        elif wrong.size:
            raise ValueError(
                f"{self.name}: domain {wrong[0]} has a loss but its weight was 0, and the reward "
                "is divided by the weight; pass the weights that drew this step"
            )
        with np.errstate(over="ignore"):
            ratio = losses / np.where(present, used, 1.0)
        return np.clip(ratio, -MAX_REWARD, MAX_REWARD)


def _as_lists(value: Any) -> Any:
    """Turns tuples, also inside each other, into lists, as JSON would return them."""
    return [_as_lists(item) for item in value] if isinstance(value, tuple) else value


def _like(value: Any) -> Check:
    """Makes a check for data in the form of ``value``: as many finite numbers."""
    if isinstance(value, list):
        is_alike = len({type(item) for item in value}) == 1
        return list_of(_like(value[0]) if is_alike else anything, len(value))
    return number() if isinstance(value, float) else anything


MixerClass = TypeVar("MixerClass", bound=type[Mixer])
_REGISTRY: dict[str, type[Mixer]] = {}


def register(name: str) -> Callable[[MixerClass], MixerClass]:
    """Class decorator that makes a mixer known to ``make_mixer`` under a name.

    Raises:
        ValueError: If another class already has the name.
    """

    def add(mixer_class: MixerClass) -> MixerClass:
        known = _REGISTRY.get(name)
        if known is not None and known.__qualname__ != mixer_class.__qualname__:
            raise ValueError(f"mixers: {name!r} is already registered by {known.__qualname__}")
        mixer_class.name = name
        mixer_class.method = METHODS.get(name, mixer_class.method)
        _REGISTRY[name] = mixer_class
        return mixer_class

    return add


def known_mixers() -> tuple[str, ...]:
    """Names of the methods of this library and of all registered mixers, sorted."""
    return tuple(sorted({*METHODS, *_REGISTRY}))


def make_mixer(name: str, **options: Any) -> Mixer:
    """Builds a mixer by name.

    Raises:
        ValueError: If the name or an option is unknown (the message suggests a known one), or a
            value is out of range.
    """
    if name in METHODS and name not in _REGISTRY:
        importlib.import_module(f".{name}", __package__)
    mixer_class = _REGISTRY.get(name)
    if mixer_class is None:
        raise ValueError(_unknown("method", name, known_mixers()))
    accepted = [field.name for field in dataclasses.fields(mixer_class)]  # type: ignore[arg-type]
    for option in options:
        if option not in accepted:
            raise ValueError(_unknown(f"option of {name}", option, accepted))
    return mixer_class(**options)


def check_smoothing_factor(where: str, value: float) -> None:
    """Raises an error for a coefficient outside [0, 1), since 1 would never learn."""
    if not is_number(value) or not 0.0 <= value < 1.0:
        raise ValueError(
            f"{where}: smoothing_factor must be in [0, 1), got {shown(value)}; it is the weight of "
            "the old value, so 1 would never learn and 0 keeps only the last loss"
        )


def check_step_size(where: str, value: float) -> None:
    """Raises an error for a factor that is not above 0."""
    if not is_number(value) or value <= 0:
        raise ValueError(f"{where}: step_size must be above 0, got {shown(value)}")


def finite_numbers(where: str, name: str, values: Any) -> tuple[float, ...]:
    """Returns an option with a number per domain as floats.

    Raises:
        ValueError: If there are none, or one is not a finite number.
    """
    if not isinstance(values, (list, tuple)) or not values:
        raise ValueError(f"{where}: needs {name}, one number per domain, got {shown(values)}")
    if not all(map(is_number, values)):
        raise ValueError(f"{where}: {name} must be finite numbers, got {shown(values)}")
    return tuple(map(float, values))


def _unknown(kind: str, name: str, known: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return f"mixers: unknown {kind} {name!r}, known: {', '.join(known) or 'none'}{hint}"
