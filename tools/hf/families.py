"""The table of model classes of transformers: one entry per family, and its fields."""

from __future__ import annotations

import re
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

from megatron.neox_arguments import ConfigError
from megatron.sizing.model_shape import ModelShape
from odm.wording import shown
from tools.hf import gpt_neox, llama, llama_names
from tools.hf.weights import Names, Weight, weights_of

__all__ = ["FAMILIES", "NEOX", "Family", "family_for", "family_of_config"]


@dataclass(frozen=True)
class Family:
    """A model class of transformers and how it corresponds to our network."""

    model_type: str
    """Value of `model_type` in config.json."""
    architecture: str
    """Name of the class."""
    weights: Names
    """Our names of parameters and theirs."""
    other_names: dict[str, str]
    """Other names that some files use for a weight."""
    ignored: str
    """Regular expression for tensors of theirs that are not weights."""
    refusals: Callable[[ModelShape], list[str]]
    """Messages about what the class cannot express."""
    write_config: Callable[[ModelShape], dict[str, Any]]
    """Fields of config.json that describe the network."""
    read_config: Callable[[dict[str, Any]], dict[str, Any]]
    """Fields of our YAML files; ValueError for what we cannot express."""

    def weights_of(self, shape: ModelShape) -> list[Weight]:
        """All parameters of a network; includes biases that are switched off."""
        return weights_of(self.weights, shape)

    def stored_names(self, weight: Weight, found: Container[str]) -> tuple[str, ...]:
        """Names of the tensors of a parameter in a folder that holds the tensors ``found``."""
        others = (self.other_names.get(name, name) for name in weight.theirs)
        pairs = zip(weight.theirs, others, strict=True)
        return tuple(name if name in found else other for name, other in pairs)

    def is_ignored(self, name: str) -> bool:
        """Returns whether a tensor of theirs is not a weight."""
        return re.fullmatch(self.ignored, name) is not None


_ROWS = (
    Family(
        model_type="gpt_neox",
        architecture="GPTNeoXForCausalLM",
        weights=gpt_neox.NAMES,
        other_names=gpt_neox.OTHER_NAMES,
        ignored=gpt_neox.IGNORED,
        refusals=gpt_neox.refusals,
        write_config=gpt_neox.write_config,
        read_config=gpt_neox.read_config,
    ),
    *(
        Family(
            model_type=model_type,
            architecture=kind.architecture,
            weights=llama_names.NAMES,
            other_names={},
            ignored=llama_names.IGNORED,
            refusals=kind.refusals,
            write_config=kind.write_config,
            read_config=kind.read_config,
        )
        for model_type, kind in llama.KINDS.items()
    ),
)
FAMILIES = {row.model_type: row for row in _ROWS}
"""In the order in which an export looks for the first that expresses its network."""

NEOX = "neox"
"""GPT-NeoX's name of its own family on the command line."""


def family_for(shape: ModelShape, architecture: str | None = None) -> Family:
    """The first family that expresses a network, or the one that is asked for.

    Args:
        shape: The network.
        architecture: A key of `FAMILIES`, or `NEOX`.

    Raises:
        ConfigError: With one line per field that the family cannot express: the one asked for, or
            else the one that lacks the fewest.
    """
    if architecture is None:
        candidates = list(FAMILIES.values())
    else:
        candidates = [FAMILIES["gpt_neox" if architecture == NEOX else architecture]]
    problems = [family.refusals(shape) for family in candidates]
    fewest = min(problems, key=len)
    if fewest:
        raise ConfigError(*fewest)
    return candidates[problems.index(fewest)]


_FOREIGN = {
    "quantization_config": "the weights are quantised; get the folder of the full ones",
    "num_local_experts": "mixtures of experts are not supported",
    "num_experts": "mixtures of experts are not supported",
}
"""Fields that make another network of any family."""


def family_of_config(config: dict[str, Any]) -> Family:
    """The family that a config.json names.

    Raises:
        ConfigError: If it is none of the table, or the network is not the plain one of its class.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ConfigError(f"model_type: {shown(model_type)} is not supported; known are {known}")
    for key, reason in _FOREIGN.items():
        if config.get(key):
            raise ConfigError(f"{key}: {shown(config[key])}: {reason}")
    return FAMILIES[model_type]
