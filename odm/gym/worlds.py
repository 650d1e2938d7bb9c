"""The worlds by name. Each is one difficulty that text really has."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..simplex import BoolArray, FloatArray
from .laws import CapacityLaws, Laws, PowerLaws, memorised_nats, useful_samples

NUM_STEPS = 2000
NUM_SLOTS = 32
NOISE_NATS = 9.0
"""Words drawn at random from a vocabulary of eight thousand: nothing but their number is learnt."""

_GENERAL_SHARE = 0.1
"""What any text is worth to a domain that needs a model that knows something, over its own."""

_FITTED = Path(__file__).with_name("pile_1m.json")


@dataclass(frozen=True, eq=False)
class World:
    """Domains, what they teach, and what counts."""

    name: str
    domains: tuple[str, ...]
    laws: Laws
    is_scored: BoolArray
    """Domains whose held-out loss counts, shape (K,): those where something can be learnt."""
    is_noise: BoolArray
    """Domains that teach nothing, shape (K,)."""
    unique: FloatArray = field(default_factory=lambda: np.array(np.inf))
    """Samples of each domain before its text repeats, as a share of the run, shape (K,) or ()."""
    num_steps: int = NUM_STEPS
    num_slots: int = NUM_SLOTS
    sample_sd: float = 0.45
    """Standard deviation in nats of the loss of one sample around its domain's."""
    decay_from: float = 1.0
    """Share of the run after which the learning rate decays."""
    decay_gain: float = 0.0
    """Share of every learnable domain's loss that the decay takes away by its end."""
    is_homogeneous: bool = False
    """Whether no mixture is better than uniform weights."""

    @property
    def num_domains(self) -> int:
        """Number of domains K."""
        return len(self.domains)

    @property
    def num_samples(self) -> int:
        """Samples of the whole run."""
        return self.num_steps * self.num_slots

    def held_out(self, samples: FloatArray, progress: float = 1.0) -> FloatArray:
        """Held-out losses in nats after so many samples of each domain, shape (K,).

        Args:
            samples: Read so far, shape (K,).
            progress: Share of the run that is done.
        """
        losses = self.laws.losses(useful_samples(samples / self.num_samples, self.unique))
        decayed = max(0.0, progress - self.decay_from) / max(1.0 - self.decay_from, 1e-9)
        return np.where(self.is_noise, losses, losses * (1.0 - self.decay_gain * decayed))

    def training(self, samples: FloatArray, progress: float = 1.0) -> FloatArray:
        """Training losses, which fall below the held-out ones where text is repeated."""
        gap = memorised_nats(samples / self.num_samples, self.unique)
        return np.maximum(self.held_out(samples, progress) - gap, 0.05)


def make_world(name: str) -> World:
    """Builds a world by its name.

    Raises:
        ValueError: If there is no world of that name.
    """
    if name not in WORLDS:
        raise ValueError(f"gym: unknown world {name!r}, known: {', '.join(WORLDS)}")
    return replace(WORLDS[name](), name=name)


def _pile() -> World:
    fitted = json.loads(_FITTED.read_text(encoding="utf-8"))["domains"]
    names = tuple(fitted)
    floor, scale, exponent = (
        np.array([fitted[name][key] for name in names]) for key in ("floor", "scale", "exponent")
    )
    exposure = np.array([[fitted[name]["exposure"][other] for other in names] for name in names])
    return _world(names, PowerLaws(floor, scale, exponent, exposure))


def _world(names: Sequence[str], laws: Laws, noise: Sequence[str] = ()) -> World:
    is_noise = np.array([name in noise for name in names])
    return World("", tuple(names), laws, ~is_noise, is_noise)


def _with_domains(world: World, added: PowerLaws, names: Sequence[str], *, noise: bool) -> World:
    """Adds domains that learn from themselves alone and teach the others nothing."""
    laws = world.laws
    assert isinstance(laws, PowerLaws)
    old, new = laws.floor.size, added.floor.size
    exposure = np.zeros((old + new, old + new))
    exposure[:old, :old], exposure[old:, old:] = laws.exposure, added.exposure
    joined = PowerLaws(
        np.concatenate([laws.floor, added.floor]),
        np.concatenate([laws.scale, added.scale]),
        np.concatenate([laws.exponent, added.exponent]),
        exposure,
        *(
            np.concatenate([np.broadcast_to(mine, old), np.broadcast_to(other, new)])
            for mine, other in (
                (laws.threshold, added.threshold),
                (laws.start_nats, added.start_nats),
            )
        ),
    )
    flags = np.full(new, noise)
    return replace(
        world,
        domains=(*world.domains, *names),
        laws=joined,
        is_scored=np.concatenate([world.is_scored, ~flags]),
        is_noise=np.concatenate([world.is_noise, flags]),
        unique=np.concatenate([np.broadcast_to(world.unique, old), np.full(new, np.inf)]),
    )


def _noise(world: World, count: int) -> World:
    """Adds random words: the loss falls to their entropy within a few samples and stays there."""
    each = np.ones(count)
    laws = PowerLaws(NOISE_NATS * each, 1e-5 * each, 1.0 * each, np.eye(count))
    return _with_domains(world, laws, [f"noise_{i + 1}" for i in range(count)], noise=True)


def _saturated(world: World) -> World:
    """Adds two domains that are learnt within a small part of the run, such as counting."""
    each = np.ones(2)
    laws = PowerLaws(np.array([0.3, 0.8]), 0.002 * each, 1.0 * each, np.eye(2))
    return _with_domains(world, laws, ["counting", "arithmetic"], noise=False)


def _tiny(world: World) -> World:
    """Two domains have 2 % of the run's samples each; uniform weights read them several times."""
    unique = np.full(world.num_domains, np.inf)
    unique[:2] = 0.02
    return replace(world, unique=unique)


def _overlapping() -> World:
    """Two domains are nearly the same text as two others."""
    world = _pile()
    laws = world.laws
    assert isinstance(laws, PowerLaws)
    rows = np.array([*range(world.num_domains), 0, 8])
    exposure = laws.exposure[np.ix_(rows, rows)]
    names = (*world.domains, *(f"{world.domains[row]}_copy" for row in rows[-2:]))
    laws = PowerLaws(laws.floor[rows], laws.scale[rows], laws.exponent[rows], exposure)
    return _world(names, laws)


def _late() -> World:
    """Two domains teach nothing until the model has read about a quarter of the run."""
    world = _pile()
    added = PowerLaws(
        floor=np.array([2.0, 2.5]),
        scale=np.array([1.2, 1.0]),
        exponent=np.array([0.25, 0.3]),
        exposure=np.eye(2),
        threshold=_GENERAL_SHARE * 0.25,
        start_nats=5.5,
    )
    world = _with_domains(world, added, ["late_1", "late_2"], noise=False)
    laws = world.laws
    assert isinstance(laws, PowerLaws)
    exposure = laws.exposure.copy()
    exposure[-2:] = _GENERAL_SHARE + (1.0 - _GENERAL_SHARE) * np.eye(2, world.num_domains, 13)
    return replace(world, laws=replace(laws, exposure=exposure))


def _capacity() -> World:
    """Eight domains compete for the model, beside one of noise."""
    names = [*(f"text_{i + 1}" for i in range(8)), "noise_1"]
    spread = np.linspace(0.0, 1.0, 8)
    laws = CapacityLaws(
        floor=np.array([*(1.5 + 0.5 * spread), NOISE_NATS]),
        capacity=np.array([*(0.4 + 0.6 * spread), 0.02]),
        capacity_exponent=0.35,
        data=np.array([*(0.6 + 0.8 * spread[::-1]), 1e-5]),
        exponent=np.array([*(0.2 + 0.15 * spread), 1.0]),
    )
    return _world(names, laws, noise=("noise_1",))


def _homogeneous() -> World:
    """Ten domains that are the same in all but name: there is nothing to win."""
    count = 10
    each = np.ones(count)
    exposure = 0.1 + 0.9 * np.eye(count)
    laws = PowerLaws(1.5 * each, 2.0 * each, 0.15 * each, exposure)
    world = _world([f"alike_{i + 1}" for i in range(count)], laws)
    return replace(world, is_homogeneous=True)


WORLDS: dict[str, Callable[[], World]] = {
    "plain": _pile,
    "noise_1": lambda: _noise(_pile(), 1),
    "noise_3": lambda: _noise(_pile(), 3),
    "saturated": lambda: _saturated(_pile()),
    "tiny": lambda: _tiny(_pile()),
    "overlapping": _overlapping,
    "late": _late,
    "capacity": _capacity,
    "rate_decay": lambda: replace(_pile(), decay_from=0.8, decay_gain=0.06),
    "everything": lambda: _noise(_saturated(_tiny(_pile())), 1),
    "homogeneous": _homogeneous,
}
"""By the name that ``--world`` takes."""
