"""Parts of a network that a test builds by itself."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from megatron.model.parameters import allocate

Part = TypeVar("Part", bound=nn.Module)


def allocated(part: Part) -> Part:
    """Gives the parameters of a part their memory, filled with zeros."""
    for parameter in part.parameters():
        allocate(parameter, dtype=torch.get_default_dtype())
    return part
