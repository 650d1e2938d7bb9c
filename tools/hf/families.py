"""The table of model classes of transformers: one entry per family, and its fields."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from megatron.neox_arguments import ConfigError
from megatron.sizing.model_shape import ModelShape
from odm.json_data import shown
from tools.hf import gpt_neox

__all__ = ["FAMILIES", "Family", "family_for", "family_of_config"]


@dataclass(frozen=True)
class Family:
    """A model class of transformers and how it corresponds to our network."""

    model_type: str
    """Value of `model_type` in config.json."""
    architecture: str
    """Name of the class."""
    weights: tuple[tuple[str, str], ...]
    """Our name and theirs, in the order of their files. {embedding}, {block}, {norm} and {output}
    are our layer numbers, {layer} counts blocks from 0."""
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

    def names(self, shape: ModelShape) -> dict[str, str]:
        """Our parameter names and theirs; includes the names of biases that are switched off."""
        fixed = {
            "embedding": "0" if shape.no_weight_tying else "tied_modules.embed",
            "norm": shape.num_layers + 3,
            "output": shape.num_layers + 4,
        }
        names: dict[str, str] = {}
        blocks = [pair for pair in self.weights if "{block}" in pair[0]]
        for pair in self.weights:
            if pair not in blocks:
                names[pair[0].format(**fixed)] = pair[1]
            elif pair == blocks[0]:  # all of a block, then all of the next
                for layer in range(shape.num_layers):
                    for ours, theirs in blocks:
                        names[ours.format(block=layer + 2)] = theirs.format(layer=layer)
        return names

    def is_ignored(self, name: str) -> bool:
        """Returns whether a tensor of theirs is not a weight."""
        return re.fullmatch(self.ignored, name) is not None


FAMILIES = {
    "gpt_neox": Family(
        model_type="gpt_neox",
        architecture="GPTNeoXForCausalLM",
        weights=gpt_neox.WEIGHTS,
        other_names=gpt_neox.OTHER_NAMES,
        ignored=gpt_neox.IGNORED,
        refusals=gpt_neox.refusals,
        write_config=gpt_neox.write_config,
        read_config=gpt_neox.read_config,
    ),
}


def family_for(shape: ModelShape) -> Family:
    """The first family that expresses a network.

    Raises:
        ConfigError: With one line per field that it cannot express.
    """
    problems: list[str] = []
    for family in FAMILIES.values():
        found = family.refusals(shape)
        if not found:
            return family
        problems += found
    raise ConfigError(*problems)


def family_of_config(config: dict[str, Any]) -> Family:
    """The family that a config.json names.

    Raises:
        ConfigError: If it is none of the table.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ConfigError(f"model_type: {shown(model_type)} is not supported; known are {known}")
    return FAMILIES[model_type]
