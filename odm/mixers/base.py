"""The interface of a mixing method, its input checks, and the registry of names.

A mixer is two pure functions on plain data. ``init`` makes a state, ``update`` turns a state and
one step's losses into the next state and the next weights. A state is JSON data (numbers, lists,
None), so that saving, comparing and replaying need no code of ours.
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

from ..json_data import Check, anything, is_number, list_of, number, plain
from ..methods import METHODS, Method
from ..signal import Signal, mean_losses
from ..simplex import (
    BoolArray,
    FloatArray,
    check_domains,
    check_weights,
    normalize,
)

State = dict[str, Any]

# Far beyond any loss over any weight. A softmax of rewards that overflow would give nan.
MAX_REWARD = 1e290


class Mixer(ABC):
    """A mixing method; subclasses are frozen dataclasses whose fields are the method's options."""

    name: ClassVar[str] = ""
    method: ClassVar[Method] = Method()
    """What a trainer must know of it; for the methods of this library their row of `METHODS`."""
    min_domains: ClassVar[int] = 2
    estimate: ClassVar[str | None] = None
    """Entry of the state, one number per domain, that a run log shows as the method's estimate."""

    @property
    def curve(self) -> str:
        """Name of the curves of the estimate: that of the research code."""
        return f"_{self.estimate}"

    def options(self) -> dict[str, Any]:
        """Options as JSON data; ``make_mixer(name, **options)`` gives the same mixer."""
        fields = dataclasses.asdict(self)  # type: ignore[call-overload]
        return {key: plain(value) for key, value in fields.items()}

    def init(self, domains: Sequence[str], weights: ArrayLike) -> State:
        """Makes the state before the first update.

        Args:
            domains: Unique names; their order is the order of every array of length K.
            weights: Raw initial weights, shape (K,), not necessarily normalised; not kept.

        Raises:
            ValueError: If a name or a weight is not usable, or K is too small for the method.
        """
        names = check_domains(domains)
        if len(names) < self.min_domains:
            raise ValueError(
                f"{self.name}: needs at least {self.min_domains} domains, got {len(names)} "
                f"({', '.join(names)}); with one domain there is nothing to mix, use static"
            )
        return self._init(check_weights(weights, len(names), where=f"{self.name}: weights"))

    def update(
        self,
        state: State,
        step: int,
        observed: Signal | ArrayLike,
        weights_used: ArrayLike,
    ) -> tuple[State, FloatArray]:
        """Turns one step's losses into the next weights; neither argument is changed.

        Args:
            state: What ``init`` or the last ``update`` returned.
            step: Optimizer step that made the losses, counted from 1.
            observed: A signal, or mean losses in nats, shape (K,), nan where a domain is absent.
            weights_used: Weights that drew this step's samples, shape (K,).

        Returns:
            The next state and probabilities, shape (K,), float64. When every domain is absent
            the state is returned as it is and the weights are those used.

        Raises:
            ValueError: If the step is below 1, a shape is wrong, or a loss is infinite.
        """
        used = normalize(check_weights(weights_used, np.size(weights_used), where=self.name))
        losses, present = mean_losses(observed, used.size, where=self.name, step=step)
        losses = np.where(present, losses, 0.0)
        return self.update_checked(state, step, losses, present, used)

    def update_checked(
        self,
        state: State,
        step: int,
        losses: FloatArray,
        present: BoolArray,
        weights_used: FloatArray,
    ) -> tuple[State, FloatArray]:
        """``update`` for a caller that has checked the arguments already.

        Args:
            state: See ``update``.
            step: See ``update``.
            losses: Finite, 0 where absent, shape (K,).
            present: Which domains have a loss, shape (K,).
            weights_used: Probabilities that drew this step's samples, shape (K,).
        """
        if not np.count_nonzero(present):
            return state, weights_used
        return self._update(state, step, losses, present, weights_used)

    def state_fields(self, initial: FloatArray, step: int) -> dict[str, Check]:
        """Checks of the fields of a saved state; by default the form of a fresh one.

        Args:
            initial: Raw initial weights of the run, shape (K,).
            step: Last step that the state has seen, from 0 on.
        """
        return {name: _like(value) for name, value in self._init(initial).items()}

    def proposals(self, state: Mapping[str, Any], initial: FloatArray) -> list[FloatArray]:
        """Weights that a saved state can have given, each of shape (K,).

        Options may have changed since; no entry: the state does not tell.

        Args:
            state: Its fields have passed their checks.
            initial: Raw initial weights of the run, shape (K,).

        Raises:
            ValueError: If the fields cannot be of one and the same state.
        """
        return []

    @abstractmethod
    def _init(self, weights: FloatArray) -> State:
        """Makes the state from checked raw weights, shape (K,)."""

    @abstractmethod
    def _update(
        self,
        state: State,
        step: int,
        losses: FloatArray,
        present: BoolArray,
        weights_used: FloatArray,
    ) -> tuple[State, FloatArray]:
        """Updates on checked input: finite losses (0 where absent), at least one present."""

    def _over_weights(
        self, losses: FloatArray, present: BoolArray, weights_used: FloatArray
    ) -> FloatArray:
        """Losses divided by the weights that drew them, shape (K,), 0 where absent; finite.

        Raises:
            ValueError: If a domain has a loss that could not have been drawn.
        """
        wrong = np.flatnonzero(present & (weights_used <= 0))
        if wrong.size:
            raise ValueError(
                f"{self.name}: domain {wrong[0]} has a loss but its weight was 0, and the reward "
                "is divided by the weight; pass the weights that drew this step"
            )
        with np.errstate(over="ignore"):
            ratio = losses / np.where(present, weights_used, 1.0)
        return np.clip(ratio, -MAX_REWARD, MAX_REWARD)


def _like(value: Any) -> Check:
    """Takes what has the form of ``value``: as many finite numbers."""
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
        ValueError: If the name or an option is unknown (the nearest known one is named), or a
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
    """Refuses a coefficient outside [0, 1): 1 would never learn."""
    if not is_number(value) or not 0.0 <= value < 1.0:
        raise ValueError(
            f"{where}: smoothing_factor must be in [0, 1), got {value}; it is the weight of the "
            "old value, so 1 would never learn and 0 keeps only the last loss"
        )


def _unknown(kind: str, name: str, known: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return f"mixers: unknown {kind} {name!r}, known: {', '.join(known) or 'none'}{hint}"
