"""Every configuration field, by topic. A string under a field is its documentation."""

from __future__ import annotations

from typing import Any

from .data_sampling import NeoXArgsDataSampling
from .deepspeed import NeoXArgsDeepspeedConfig
from .logging import NeoXArgsLogging
from .lr_scheduler import NeoXArgsLRScheduler
from .model import NeoXArgsModel
from .optimizer import NeoXArgsOptimizer
from .other import NeoXArgsOther
from .parallelism import NeoXArgsParallelism
from .runner import NeoXArgsDeepspeedRunner
from .text_generation import NeoXArgsTextgen
from .tokenizer import NeoXArgsTokenizer
from .training import NeoXArgsTraining

GROUPS: dict[str, type[Any]] = {
    "runner": NeoXArgsDeepspeedRunner,
    "deepspeed": NeoXArgsDeepspeedConfig,
    "parallelism": NeoXArgsParallelism,
    "model": NeoXArgsModel,
    "optimizer": NeoXArgsOptimizer,
    "lr_scheduler": NeoXArgsLRScheduler,
    "logging": NeoXArgsLogging,
    "other": NeoXArgsOther,
    "tokenizer": NeoXArgsTokenizer,
    "training": NeoXArgsTraining,
    "data_sampling": NeoXArgsDataSampling,
    "text_generation": NeoXArgsTextgen,
}
"""The groups by the name of their attribute in ``RunConfig``, in the order of the documentation."""

__all__ = [
    "GROUPS",
    "NeoXArgsDeepspeedRunner",
    "NeoXArgsDeepspeedConfig",
    "NeoXArgsParallelism",
    "NeoXArgsModel",
    "NeoXArgsOptimizer",
    "NeoXArgsLRScheduler",
    "NeoXArgsLogging",
    "NeoXArgsOther",
    "NeoXArgsTokenizer",
    "NeoXArgsTraining",
    "NeoXArgsDataSampling",
    "NeoXArgsTextgen",
]
