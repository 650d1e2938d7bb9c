"""The research code's names for mixing weights, on the bodies of ``odm``.

For scripts written against the released code of arXiv:2312.02406; this framework itself uses
``odm.MixtureController``. Every formula lives in ``odm.mixers``. Kept: names, call signatures,
attributes, numbers to 1e-12. Changed on purpose: the caller's list of weights is never written
to, no state overflows, and bad input is refused with a message.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, SupportsFloat, TypeAlias

import numpy as np

from odm.controller import is_update_due
from odm.methods import METHODS
from odm.mixers import Mixer, SmoothedMean, make_mixer
from odm.simplex import check_weights
from odm.wording import counted

Names: TypeAlias = Sequence[str]
Weights: TypeAlias = Sequence[float]
Rewards: TypeAlias = Sequence[SupportsFloat]


class WeightUpdater(ABC):
    """Weights of named domains that are updated by rewards; shared by all updaters below.

    Args:
        dataset_names: Unique domain names; their order is the order of all returned lists.
        weights: Raw initial weights, one per name; copied.
        mixer: The method.

    Raises:
        ValueError: If a name is repeated, a weight is not usable, or there is only one domain.
    """

    def __init__(self, dataset_names: Names, weights: Weights, *, mixer: Mixer) -> None:
        estimates = (mixer.curve,) if mixer.estimate else ()
        self.vars_to_log = ("_probabilities", *estimates)
        self.dataset_names = list(dataset_names)
        self.num_datasets = len(self.dataset_names)
        self._mixer = mixer
        self._state = mixer.init(self.dataset_names, weights)
        self.dataset_map = {name: index for index, name in enumerate(self.dataset_names)}
        raw = np.array(weights, dtype=np.float64)
        self._unnormalized: list[float] = raw.tolist()
        self._probabilities: dict[str, float] = self._named((raw / np.sum(raw)).tolist())

    def __getattr__(self, name: str) -> dict[str, float]:
        """The method's estimate by domain name, under its name in the research code."""
        mixer = vars(self).get("_mixer")
        if mixer is None or mixer.estimate is None or name != mixer.curve:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return self._named(self._state[mixer.estimate])

    def group_update(self, dataset_names: Names, rewards: Rewards, iteration: int) -> list[float]:
        """Updates by the mean losses of the domains that an iteration saw.

        Args:
            dataset_names: Domains of this iteration, each once.
            rewards: Mean loss in nats of each; numbers or one-element tensors.
            iteration: Global iteration after its increment, so >= 1.

        Returns:
            Probabilities in domain order, a new list.

        Raises:
            ValueError: If a name is unknown or repeated, or a loss is not finite.
        """
        losses = self._losses(dataset_names, rewards, iteration=iteration)
        return self._apply(self._mixer, losses, iteration=iteration)

    @abstractmethod
    def update(self, *args: Any, **kwargs: Any) -> list[float]:
        """The second entry point of the research code; its arguments differ between updaters."""

    def _losses(self, names: Names, rewards: Rewards, *, iteration: int) -> np.ndarray:
        """Mean losses in domain order, nan where absent."""
        method = self._mixer.name
        if len(names) != len(rewards):
            raise ValueError(
                f"{method}: {counted(len(names), 'name')} for {counted(len(rewards), 'reward')}"
            )
        losses = np.full(self.num_datasets, np.nan)
        for name, reward in zip(names, rewards, strict=True):
            index, loss = self._index_of(name), float(reward)
            if not np.isfinite(loss):
                raise ValueError(
                    f"{method}: loss of {name!r} at iteration {iteration} is {loss}, must be "
                    "finite; leave out domains whose loss overflowed"
                )
            if not np.isnan(losses[index]):
                raise ValueError(f"{method}: {name!r} is given twice; average its losses first")
            losses[index] = loss
        return losses

    def _apply(self, mixer: Mixer, losses: np.ndarray, *, iteration: int) -> list[float]:
        used = np.array(list(self._probabilities.values()))
        self._state, weights = mixer.update(self._state, iteration, losses, used)
        self._unnormalized = list(self._state.get("weights", weights.tolist()))
        self._probabilities = self._named(weights.tolist())
        return weights.tolist()

    def _index_of(self, name: str) -> int:
        if name not in self.dataset_map:
            known = ", ".join(self.dataset_names)
            raise ValueError(f"{self._mixer.name}: unknown domain {name!r}, known: {known}")
        return self.dataset_map[name]

    def _named(self, values: Sequence[float]) -> dict[str, float]:
        return dict(zip(self.dataset_names, values, strict=True))


class _OneDomainUpdate(WeightUpdater):
    """An updater that can also be fed one training loss."""

    def update(self, dataset_name: str, reward: SupportsFloat, iteration: int) -> list[float]:
        """Updates by one domain's mean loss in nats; returns probabilities in domain order."""
        return self.group_update([dataset_name], [reward], iteration)


class _ExploringWeightUpdater(WeightUpdater):
    """An updater whose weights have the shrinking uniform share ``eps``."""

    @property
    def weights(self) -> list[float]:
        """Copy of the weights in domain order: raw before the first update."""
        return list(self._unnormalized)

    @property
    def eps(self) -> float:
        """Uniform share of the last update; 1 / K before the first."""
        return self._state["eps"]

    @property
    def prev_eps(self) -> float | None:
        """The share before that; None before the first update."""
        return self._state["prev_eps"]


class _RewardAverage(_ExploringWeightUpdater, _OneDomainUpdate):
    _method: ClassVar[str]

    def __init__(
        self, dataset_names: Names, weights: Weights, smoothing_factor: float = 0.9
    ) -> None:
        mixer = make_mixer(self._method, smoothing_factor=smoothing_factor)
        super().__init__(dataset_names, weights, mixer=mixer)
        self.smoothing_factor = smoothing_factor


class SmoothedMeanWeightUpdater(_RewardAverage):
    """ODM as released: see ``odm.mixers.SmoothedMean``.

    ``update`` (one domain) and ``group_update`` are different methods in the research code, and
    so they are here: the first takes a softmax of the smoothed perplexity, the second its share.
    """

    _method = "smoothed_mean"

    def update(self, dataset_name: str, reward: SupportsFloat, iteration: int) -> list[float]:
        """Updates by one domain's mean loss in nats; returns probabilities in domain order."""
        losses = self._losses([dataset_name], [reward], iteration=iteration)
        mixer = SmoothedMean(self.smoothing_factor, share="softmax")
        return self._apply(mixer, losses, iteration=iteration)


class OdmPaperWeightUpdater(_RewardAverage):
    """ODM as published, which tends to uniform weights: see ``odm.mixers.OdmPaper``."""

    _method = "odm_paper"


class Exp3WeightUpdater(_ExploringWeightUpdater, _OneDomainUpdate):
    """EXP3 with cumulative importance-weighted losses: see ``odm.mixers.Exp3``."""

    def __init__(self, dataset_names: Names, weights: Weights) -> None:
        super().__init__(dataset_names, weights, mixer=make_mixer("exp3"))


class EMAWeightUpdater(_OneDomainUpdate):
    """Weights that follow the losses themselves: see ``odm.mixers.Ema``.

    ``weights`` are the moving averages by domain name, not normalised.
    """

    def __init__(self, dataset_names: Names, weights: Weights) -> None:
        super().__init__(dataset_names, weights, mixer=make_mixer("ema"))


class NaiveValidationWeightUpdater(_ExploringWeightUpdater):
    """Cumulative normalised validation losses: see ``odm.mixers.NaiveValidation``.

    Args:
        dataset_names, weights: The same as in every updater.
        reward_dataloaders: For every domain an iterable of held-out batches; started again at
            its end.
        neox_args: Accepted as in the research code and passed to ``validation_loss``.
        validation_loss: Function of (model, batch, neox_args) that returns the mean loss over
            all ranks, a number. Without it only ``group_update`` with losses that you measured
            can be called; this module knows neither torch nor the model.
    """

    def __init__(
        self,
        dataset_names: Names,
        weights: Weights,
        reward_dataloaders: Mapping[str, Iterable[Any]] | None = None,
        neox_args: Any = None,
        validation_loss: Callable[[Any, Any, Any], SupportsFloat] | None = None,
    ) -> None:
        super().__init__(dataset_names, weights, mixer=make_mixer("naive_validation"))
        self._loaders = dict(reward_dataloaders or {})
        self._iterators: dict[str, Iterator[Any]] = {}
        self._neox_args = neox_args
        self._validation_loss = validation_loss
        self._rewards: dict[str, float] = {}
        missing = [name for name in self.dataset_names if name not in self._loaders]
        if self._loaders and missing:
            raise ValueError(f"naive_validation: reward_dataloaders lacks {', '.join(missing)}")

    def update(self, iteration: int, model: Any) -> list[float]:
        """Measures one held-out batch of every domain and updates by the losses."""
        if not self._loaders or self._validation_loss is None:
            raise ValueError(
                "naive_validation: update needs reward_dataloaders and validation_loss; give "
                "both, or call group_update with losses of every domain"
            )
        names, loss_of = self.dataset_names, self._validation_loss
        rewards = [float(loss_of(model, self._next_batch(n), self._neox_args)) for n in names]
        return self.group_update(names, rewards, iteration)

    def group_update(self, dataset_names: Names, rewards: Rewards, iteration: int) -> list[float]:
        """Updates by validation losses of every domain, measured by the caller."""
        probabilities = super().group_update(dataset_names, rewards, iteration)
        self._rewards = dict(zip(dataset_names, map(float, rewards), strict=True))
        return probabilities

    def _next_batch(self, name: str) -> Any:
        for _ in range(2):
            if name not in self._iterators:
                self._iterators[name] = iter(self._loaders[name])
            try:
                return next(self._iterators[name])
            except StopIteration:
                del self._iterators[name]
        raise ValueError(f"naive_validation: the reward data loader of {name!r} is empty")


class UpdateScheduler:
    """Decides at which iterations an update is due: see ``requires_update``."""

    def __init__(self, warmup_steps: int, update_frequency: int) -> None:
        if update_frequency < 1 or warmup_steps < 0:
            raise ValueError(
                "data_sampling_update_frequency must be >= 1 and data_sampling_warmup_steps >= 0, "
                f"got {update_frequency} and {warmup_steps}"
            )
        self.warmup_steps = warmup_steps
        self.update_frequency = update_frequency

    def requires_update(self, iteration: int) -> bool:
        """True where ``iteration > warmup_steps and iteration % update_frequency == 0``."""
        return is_update_due(
            iteration, warmup_steps=self.warmup_steps, update_frequency=self.update_frequency
        )


class BaseDataSamplingWeight:
    """Constant raw weights; calling the object returns a copy of them."""

    def __init__(self, weights: Weights) -> None:
        self.weights = [float(weight) for weight in weights]

    def __call__(self) -> list[float]:
        """Copy of the weights of the next draw, in domain order."""
        return list(self.weights)

    def update(self, iteration: int, **observed: Any) -> None:
        """Does nothing: the weights are constant."""

    def group_update(self, iteration: int, **observed: Any) -> None:
        """Does nothing: the weights are constant."""

    def log(self) -> dict[str, Any]:
        """Nothing to log."""
        return {}


class DynamicDataSamplingWeight(BaseDataSamplingWeight):
    """Weights that an updater changes when the scheduler requires it.

    Until the first update the raw weights are returned as given. ``warmup_steps`` and
    ``update_frequency``: see ``UpdateScheduler``; the rest: see ``get_weight_updater``. No updater
    has ``internal_updates``.
    """

    def __init__(
        self,
        dataset_names: Names,
        weights: Weights,
        warmup_steps: int,
        update_frequency: int,
        update_method: str,
        internal_updates: bool = False,
        **options: Any,
    ) -> None:
        if internal_updates:
            raise ValueError("internal_updates: no updater has updates of its own, use false")
        super().__init__(weights)
        self.dataset_names = list(dataset_names)
        self.update_method = update_method
        self.update_scheduler = UpdateScheduler(warmup_steps, update_frequency)
        self.weight_updater = get_weight_updater(update_method, dataset_names, weights, **options)

    def update(self, iteration: int, **observed: Any) -> None:
        """Hands ``observed`` to the updater's ``update`` if an update is due."""
        if self.update_scheduler.requires_update(iteration):
            self.weights = self.weight_updater.update(iteration=iteration, **observed)

    def group_update(self, iteration: int, **observed: Any) -> None:
        """Hands ``observed`` to the updater's ``group_update`` if an update is due."""
        if self.update_scheduler.requires_update(iteration):
            self.weights = self.weight_updater.group_update(iteration=iteration, **observed)

    def log(self) -> dict[str, Any]:
        """The updater's ``vars_to_log`` by name."""
        updater = self.weight_updater
        return {name: getattr(updater, name) for name in updater.vars_to_log}


_OF_RESEARCH_CODE: dict[str, type[WeightUpdater]] = {
    "smoothed_mean": SmoothedMeanWeightUpdater,
    "odm_paper": OdmPaperWeightUpdater,
    "exp3": Exp3WeightUpdater,
    "ema": EMAWeightUpdater,
    "naive_validation": NaiveValidationWeightUpdater,
}


def get_weight_updater(
    update_method: str, dataset_names: Names, weights: Weights, **options: Any
) -> WeightUpdater:
    """Builds an updater by the value of ``data_sampling_method``.

    Args:
        update_method: A method of ``odm.methods`` that learns.
        dataset_names: Unique domain names.
        weights: Raw initial weights, one per name.
        **options: ``smoothing_factor`` for smoothed_mean and odm_paper; ``reward_dataloaders``,
            ``neox_args`` and ``validation_loss`` for naive_validation; for a method that the
            research code did not have, those of its mixer.

    Raises:
        ValueError: If the method is unknown, with the known ones.
    """
    learning = [name for name, method in METHODS.items() if method.learns]
    if update_method not in learning:
        raise ValueError(
            f"data_sampling_method: unknown method {update_method!r}, use one of "
            f"{', '.join(learning)}"
        )
    if update_method in _OF_RESEARCH_CODE:
        return _OF_RESEARCH_CODE[update_method](dataset_names, weights, **options)
    return _OneDomainUpdate(dataset_names, weights, mixer=make_mixer(update_method, **options))


def get_data_sampling_weighter(
    dataset_names: Names,
    weights: Weights,
    warmup_steps: int = 0,
    update_frequency: int = 0,
    update_method: str | None = None,
    **options: Any,
) -> BaseDataSamplingWeight:
    """Builds constant weights (no method) or weights with an updater.

    Raises:
        ValueError: If warm-up or frequency is given without a method, or an argument is unusable.
    """
    if update_method is not None:
        return DynamicDataSamplingWeight(
            dataset_names, weights, warmup_steps, update_frequency, update_method, **options
        )
    if warmup_steps or update_frequency:
        raise ValueError(
            "data_sampling_method is not set, so data_sampling_warmup_steps and "
            f"data_sampling_update_frequency must be 0, got {warmup_steps} and {update_frequency}"
        )
    check_weights(weights, len(dataset_names), where="train_data_weights")
    return BaseDataSamplingWeight(weights)
