"""Rotary and sinusoidal positions.

Shapes: b batch, s sequence, n heads, d head size, r rotated part of the head (even, <= d).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from megatron.model.config import ModelConfig

__all__ = ["RotaryTable", "apply_rotary_", "make_rotary", "signed_angles", "sinusoidal_positions"]


class RotaryTable:
    """cos and sin of the rotation angles, always float32, grown on demand, one copy a device.

    Not a module buffer on purpose: ``module.bfloat16()`` would round the angles, which is why
    models trained with older code differ from their exports at long contexts.
    """

    def __init__(self, rotary_dim: int, base: float):
        self.rotary_dim = rotary_dim
        self.base = base
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def get(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Returns (cos, sin), each (length, rotary_dim // 2), for positions 0..length-1."""
        cos, sin = self._tables.get(device, (None, None))
        if cos is None or sin is None or cos.shape[0] < length:
            exponents = torch.arange(0, self.rotary_dim, 2, dtype=torch.float64) / self.rotary_dim
            positions = torch.arange(length, dtype=torch.float64)
            angles = torch.outer(positions, self.base**-exponents)
            cos, sin = (f.to(device, torch.float32) for f in (angles.cos(), angles.sin()))
            self._tables[device] = (cos, sin)
        return cos[:length], sin[:length]


def make_rotary(config: ModelConfig) -> RotaryTable | None:
    """The table that all layers share; None for other positions."""
    if config.pos_emb != "rotary":
        return None
    return RotaryTable(config.rotary_dim, config.rotary_emb_base)


class _RotateInPlace(torch.autograd.Function):
    """Rotates pairs (i, i + r/2) of the leading r features; its adjoint is the inverse rotation."""

    @staticmethod
    def forward(ctx, features: Tensor, cos: Tensor, sin: Tensor, num_rotated: int) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.num_rotated = num_rotated
        ctx.mark_dirty(features)
        _rotate_(features, cos, sin, num_rotated)
        return features

    @staticmethod
    def backward(ctx, *grads: Tensor):
        cos, sin = ctx.saved_tensors
        grad = grads[0].clone()
        _rotate_(grad, cos, -sin, ctx.num_rotated)
        return grad, None, None, None


def _rotate_(features: Tensor, cos: Tensor, sin: Tensor, num_rotated: int) -> None:
    """In place; (b, s, groups, slots, d), and cos and sin (b or 1, s, 1, 1, r), sin signed.

    The angles are repeated for all slots, so that the arithmetic runs over whole positions: over r
    features at a time, often 8 or 16, it takes three times as long on a CPU.
    """
    size = cos.shape[-1]
    rotated = features[..., :num_rotated, :size]
    cos, sin = (a.expand(-1, *rotated.shape[1:]).flatten(2) for a in (cos, sin))
    exact = rotated.to(cos.dtype)  # float32 for half precision: the cast comes last
    swapped = exact.roll(size // 2, dims=-1).flatten(2)
    new = torch.addcmul(exact.flatten(2) * cos, swapped, sin)
    rotated.copy_(new.view(rotated.shape))


def apply_rotary_(features: Tensor, cos: Tensor, sin: Tensor, num_rotated: int) -> Tensor:
    """Rotates queries and keys of a fused projection in place (GPT-NeoX's half-rotation layout).

    Args:
        features: (b, s, groups, q.. k v, d), overwritten; the caller must not need the old values.
        cos: (s, r / 2) or broadcastable (b, s, r / 2), float32.
        sin: As ``cos``.
        num_rotated: How many of the leading q.. k slots of dimension 3 to rotate.

    Source: Su et al. 2021, arXiv:2104.09864.
    """
    return _RotateInPlace.apply(features, *signed_angles(cos, sin, features.dtype), num_rotated)


def signed_angles(cos: Tensor, sin: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Angles as a rotation of fused projections multiplies them.

    Args:
        cos: (s, r / 2) or (b, s, r / 2), float32.
        sin: As ``cos``.
        dtype: Of the features.

    Returns:
        cos and sin, (1 or b, s, 1, 1, r), float64 for features of that; the first half of sin is
        negative.
    """
    if dtype == torch.float64:
        cos, sin = cos.double(), sin.double()
    if cos.dim() == 2:
        cos, sin = cos.unsqueeze(0), sin.unsqueeze(0)
    cos, sin = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
    return cos[:, :, None, None], sin[:, :, None, None]


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
