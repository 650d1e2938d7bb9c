"""Biases that depend on the distance between query and key: ALiBi, and T5's learned buckets.

Shapes: n query heads of this tensor-parallel rank, s queries, t keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron.model.init_functions import INIT_METHODS
from megatron.model.parameters import make_parameter
from megatron.mpu.tensor_parallel import SINGLE, TensorParallel
from megatron.sizing.model_shape import ModelShape

Reader = Callable[[Tensor], Tensor]

__all__ = [
    "SHARED_BIAS",
    "AlibiBias",
    "LearnedBias",
    "RelativeBias",
    "alibi_slopes",
    "make_relative_bias",
]

SHARED_BIAS = "rpe"
"""Name of the module of learned relative biases, which all blocks share."""


def alibi_slopes(num_heads: int) -> list[float]:
    """The slope of each head.

    For 2^k heads a geometric series from 2^(-8 / 2^k) on, with this number as its ratio. Otherwise
    the series of the next lower power of two, and then every other slope of the next higher one.

    Source: Press et al. 2022, arXiv:2108.12409.
    """
    lower = 2 ** math.floor(math.log2(num_heads))
    first = 2.0 ** (-8.0 / lower)
    slopes = [first ** (head + 1) for head in range(lower)]
    if lower < num_heads:
        slopes += alibi_slopes(2 * lower)[0::2][: num_heads - lower]
    return slopes


class AlibiBias:
    """``-slope * distance``; it has no parameters."""

    def __init__(self, config: ModelShape, tp: TensorParallel = SINGLE):
        heads = tp.divide(config.num_attention_heads, "num_attention_heads")
        slopes = alibi_slopes(config.num_attention_heads)
        self._slopes = slopes[tp.rank * heads : (tp.rank + 1) * heads]
        self._on_device: dict[torch.device, Tensor] = {}

    def reader(self, longest: int, device: torch.device, values: Tensor | None = None) -> Reader:
        """A function from distances below ``longest`` to biases; smaller and larger ones count as
        the nearest of these.
        """
        slopes = self._on_device.get(device)
        if slopes is None:
            slopes = -torch.tensor(self._slopes, dtype=torch.float32, device=device)[:, None, None]
            self._on_device[device] = slopes
        return lambda distances: distances.unsqueeze(-3).clamp(0, longest - 1).float() * slopes


class LearnedBias(nn.Module):
    """A learned number per head and bucket of distances, times sqrt(head size), as in GPT-NeoX.

    The first half of the buckets has one distance each; the second half grows logarithmically up to
    ``rpe_max_distance``, and the last bucket has all larger distances. All layers share the table.

    Source: Raffel et al. 2020, arXiv:1910.10683, for queries that see no later key.
    """

    def __init__(self, config: ModelShape, tp: TensorParallel = SINGLE):
        super().__init__()
        heads = tp.divide(config.num_attention_heads, "num_attention_heads")
        self._scale = math.sqrt(config.head_dim)
        self._num_buckets = config.rpe_num_buckets
        self._max_distance = config.rpe_max_distance
        everything = torch.arange(config.max_position_embeddings)
        # not a buffer, which would be part of the weights
        self._buckets = buckets(everything, config.rpe_num_buckets, config.rpe_max_distance)
        self.weight = make_parameter(
            config.rpe_num_buckets,
            heads,
            init_method=INIT_METHODS["xavier_normal"](0.0, 1, 1),  # whatever init_method is
            logical_shape=(config.rpe_num_buckets, config.num_attention_heads),
            tp_dim=1,
        )

    def forward(self, longest: int, device: torch.device) -> Tensor:
        """Biases of the distances 0 .. ``longest`` - 1, (longest, n) in the dtype of the table."""
        if self._buckets.shape[0] < longest or self._buckets.device != device:
            distances = torch.arange(max(longest, self._buckets.shape[0]))
            self._buckets = buckets(distances, self._num_buckets, self._max_distance).to(device)
        return F.embedding(self._buckets[:longest], self.weight) * self._scale

    def reader(self, longest: int, device: torch.device, values: Tensor | None = None) -> Reader:
        """As `AlibiBias.reader`, with gradients; ``values`` are the result of ``forward``.

        A model calls ``forward`` once per pass, outside of what is computed again for gradients:
        ZeRO reduces the gradient of a parameter when it has come, and it has to come once.
        """
        found = self(longest, device) if values is None else values

        def read(distances: Tensor) -> Tensor:
            rows = distances.clamp(0, min(longest, found.shape[0]) - 1)
            return F.embedding(rows, found).movedim(-1, -3)

        return read


def buckets(distances: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """Buckets of distances of at least 0, int64; computed in float32, as in T5 and GPT-NeoX."""
    exact = num_buckets // 2
    growth = torch.log(distances.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    grown = exact + (growth * (num_buckets - exact)).long()
    return torch.where(distances < exact, distances, grown.clamp(max=num_buckets - 1))


RelativeBias = AlibiBias | LearnedBias
"""Its `reader` gives biases of distances, (..., s, t) int64 -> (..., n, s, t)."""


def make_relative_bias(config: ModelShape, tp: TensorParallel = SINGLE) -> RelativeBias | None:
    """The bias that all layers share; None for other positions."""
    if config.pos_emb == "alibi":
        return AlibiBias(config, tp)
    return LearnedBias(config, tp) if config.pos_emb == "rpe" else None
