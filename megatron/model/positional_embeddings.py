"""Rotary and sinusoidal positions.

Shapes: b batch, s sequence, n heads, d head size, r rotated part of the head (even, <= d).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from megatron.model.rope_scaling import attention_factor, inverse_frequencies
from megatron.neox_arguments.sections.model import RopeScaling
from megatron.sizing.model_shape import ModelShape

__all__ = ["RotaryTable", "make_rotary", "rotate_", "rotated", "sinusoidal_positions"]


class RotaryTable:
    """cos and sin of the rotation angles; grows on demand; one copy per device and precision.

    It is not a module buffer, since ``module.bfloat16()`` would round the angles. (Older code did
    this, so models trained with it differ from their exports at long contexts.)
    """

    def __init__(
        self,
        rotary_dim: int,
        base: float,
        *,
        scaling: RopeScaling | None = None,
        max_positions: int = 0,
    ):
        self.rotary_dim = rotary_dim
        self.base = base
        self.scaling = scaling
        self.max_positions = max_positions
        """Longest text for which dynamic scaling changes nothing."""
        self._tables: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def get(self, length: int, *, like: Tensor) -> tuple[Tensor, Tensor]:
        """Angles of positions 0 .. ``length`` - 1, in the form that `rotate_` takes.

        Args:
            length: Number of positions s.
            like: A tensor of the features' dtype and device.

        Returns:
            cos and sin, (s, r) each, with float32 values (float64 for float64 features). The value
            of a pair appears twice: at i, and at i + r / 2, where sin has the other sign. YaRN's
            attention factor multiplies both.
        """
        key = like.device, torch.float64 if like.dtype == torch.float64 else torch.float32
        table = self._tables.get(key)
        if table is None or table[0].shape[0] < length or self._depends_on(table[0].shape[0]):
            self._tables[key] = table = self._make(length, key)
        return table[0][:length], table[1][:length]

    def _depends_on(self, length: int) -> bool:
        """Whether the angles of texts of this length are theirs alone."""
        scaling = self.scaling
        is_dynamic = scaling is not None and scaling.rope_type == "dynamic"
        return is_dynamic and length > self.max_positions

    def _make(self, length: int, key: tuple[torch.device, torch.dtype]) -> tuple[Tensor, Tensor]:
        frequencies = inverse_frequencies(
            self.rotary_dim,
            self.base,
            self.scaling,
            length=length,
            max_positions=self.max_positions,
        )
        angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)
        factor = attention_factor(self.scaling)
        cos, sin = (angles.cos() * factor).float(), (angles.sin() * factor).float()
        return torch.cat((cos, cos), dim=-1).to(*key), torch.cat((-sin, sin), dim=-1).to(*key)


def make_rotary(config: ModelShape) -> RotaryTable | None:
    """The table that all layers share; None without rotary positions."""
    if config.pos_emb != "rotary":
        return None
    return RotaryTable(
        config.rotary_dim,
        config.rotary_emb_base,
        scaling=config.rope_scaling,
        max_positions=config.max_position_embeddings,
    )


def rotate_(features: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates queries and keys of a fused projection in place (GPT-NeoX's half-rotation layout).

    Args:
        features: (b, s, groups, q.. k v, d), overwritten in place. The last slot of dimension 3,
            the value, is not changed.
        angles: cos and sin of `RotaryTable.get` at the positions, (b or 1, s, 1, 1, r).

    Source: Su et al. 2021, arXiv:2104.09864.
    """
    if torch.is_grad_enabled() and features.requires_grad:
        return _RotateInPlace.apply(features, *angles)
    _rotate_(features, *angles)
    return features


def rotated(features: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """As `rotate_`, in a new tensor: a compiler makes one kernel of it, with its neighbours."""
    cos, sin = angles
    size = cos.shape[-1]
    exact = features[..., :-1, :size].to(cos.dtype)
    turned = torch.addcmul(exact * cos, exact.roll(size // 2, dims=-1), sin).to(features.dtype)
    queries_and_keys = torch.cat((turned, features[..., :-1, size:]), dim=-1)
    return torch.cat((queries_and_keys, features[..., -1:, :]), dim=3)


class _RotateInPlace(torch.autograd.Function):
    """Rotates pairs (i, i + r/2) of the leading r features; its adjoint is the inverse rotation."""

    @staticmethod
    def forward(ctx, features: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.mark_dirty(features)
        _rotate_(features, cos, sin)
        return features

    @staticmethod
    def backward(ctx, *grads: Tensor):
        cos, sin = ctx.saved_tensors
        grad = grads[0].clone()
        _rotate_(grad, cos, -sin)
        return grad, None, None


def _rotate_(features: Tensor, cos: Tensor, sin: Tensor) -> None:
    size = cos.shape[-1]
    rotated = features[..., :-1, :size]
    if rotated.dtype == cos.dtype:
        swapped = rotated.roll(size // 2, dims=-1)
        rotated.mul_(cos).addcmul_(swapped, sin)
    else:  # half precision is rotated in float32 and cast at the end
        exact = rotated.to(cos.dtype)
        rotated.copy_(torch.addcmul(exact * cos, exact.roll(size // 2, dims=-1), sin))


def sinusoidal_positions(length: int, hidden_size: int, device: torch.device) -> Tensor:
    """Fixed positions, (length, hidden_size) float32: sines first, then cosines.

    Source: Vaswani et al. 2017, arXiv:1706.03762.
    """
    exponents = torch.arange(0, hidden_size, 2, dtype=torch.float64) / hidden_size
    angles = torch.outer(
        torch.arange(length, dtype=torch.float64), torch.exp(-math.log(10000.0) * exponents)
    )
    return torch.cat((angles.sin(), angles.cos()), dim=-1)[:, :hidden_size].to(
        device, torch.float32
    )
