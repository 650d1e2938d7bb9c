"""Activation functions of the MLP, plain and gated, by GPT-NeoX's names."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ACTIVATIONS", "GATED_ACTIVATIONS", "get_activation"]


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _identity(x: Tensor) -> Tensor:
    return x


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "softsign": F.softsign,
    "swish": F.silu,
    "silu": F.silu,
    "mish": F.mish,
}

GATED_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    # Shazeer 2020, arXiv:2002.05202; the gate is the first half of the columns
    "geglu": F.gelu,
    "swiglu": F.silu,
    "reglu": F.relu,
    "bilinear": _identity,
    "glu": torch.sigmoid,
}


def get_activation(name: str, *, tanh_gelu: bool) -> Callable[[Tensor], Tensor]:
    """Returns the pointwise function of a plain activation, or of the gate in a gated activation.

    Args:
        name: A key of `ACTIVATIONS` or `GATED_ACTIVATIONS`.
        tanh_gelu: Whether gelu is computed by its tanh approximation.
    """
    function = ACTIVATIONS.get(name) or GATED_ACTIVATIONS[name]
    return _gelu_tanh if tanh_gelu and function is F.gelu else function
