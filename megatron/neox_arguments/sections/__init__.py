"""Every answer of a configuration, by purpose, and the keys that it comes from.

A field with a default, or with a `Key`, is a key of the configuration files; other fields follow
from keys by a rule (see `rules`). A string under a field is its documentation. The classes that end
in `Keys` only declare keys: no section has the written value of these.

The modules of this package do not postpone annotations (`from __future__ import annotations`): the
table of all keys reads each of them at every start, and evaluating them from text takes 7 ms.
"""

from typing import Any, NamedTuple

from .data import Data, DataKeys, DomainGroup, Mixing, MixingKeys, TrainWeighting
from .evaluation import Evaluation, Generation
from .launch import Launch, LaunchKeys
from .layout import Batch, Layout, LayoutKeys
from .model import Model, ModelKeys
from .optimization import Optimizer, OptimizerKeys, Precision, PrecisionKeys, Schedule, ScheduleKeys
from .output import Logging, Saving


class Section(NamedTuple):
    """A part of the configuration.

    ``only_training``: a program that only reads a model is not refused for its keys.
    """

    answers: type[Any]
    keys: type[Any] | None = None
    only_training: bool = False


SECTIONS: dict[str, Section] = {
    "model": Section(Model, ModelKeys),
    "layout": Section(Layout, LayoutKeys),
    "batch": Section(Batch, only_training=True),
    "precision": Section(Precision, PrecisionKeys),
    "optimizer": Section(Optimizer, OptimizerKeys, only_training=True),
    "schedule": Section(Schedule, ScheduleKeys, only_training=True),
    "data": Section(Data, DataKeys),
    "mixing": Section(Mixing, MixingKeys, only_training=True),
    "saving": Section(Saving, only_training=True),
    "logging": Section(Logging, only_training=True),
    "evaluation": Section(Evaluation),
    "generation": Section(Generation),
    "launch": Section(Launch, LaunchKeys),
}
"""The sections by the name of their attribute in ``RunConfig``, in the order of the reference."""

__all__ = [
    "SECTIONS",
    "Batch",
    "Data",
    "DomainGroup",
    "Evaluation",
    "Generation",
    "Launch",
    "Layout",
    "Logging",
    "Mixing",
    "Model",
    "Optimizer",
    "Precision",
    "Saving",
    "Schedule",
    "Section",
    "TrainWeighting",
]
