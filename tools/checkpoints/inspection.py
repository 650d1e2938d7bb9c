"""The content of a checkpoint in numbers, and how two checkpoints differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tools.checkpoints.tensor_sources import TensorSource, row_blocks

__all__ = [
    "TensorDifference",
    "TensorFigures",
    "compare_facts",
    "compare_tensors",
    "tensor_figures",
]


@dataclass(frozen=True)
class TensorFigures:
    """One tensor in numbers."""

    norm: float
    """Square root of the sum of squares; NaN or infinite if an element is."""
    max_abs: float
    """Largest magnitude."""
    non_finite: int
    """Elements that are NaN or infinite."""


@dataclass(frozen=True)
class TensorDifference:
    """A parameter, or a moment of it, in two checkpoints."""

    name: str
    kind: str
    problem: str | None = None
    """Why the two cannot be compared; None if they were."""
    max_absolute: float = 0.0
    max_relative: float = 0.0
    """Largest of |a - b| / max(|a|, |b|)."""
    different: int = 0
    """Elements whose bits differ: 0.0 and -0.0 do, the same NaN does not."""
    count: int = 0
    """Elements compared."""

    @property
    def is_equal(self) -> bool:
        """Equal to the bit."""
        return self.problem is None and self.different == 0


def tensor_figures(source: TensorSource, name: str, kind: str) -> TensorFigures:
    """Reads a tensor block by block; the sum of squares is kept in float64."""
    sum_of_squares, max_abs, non_finite = 0.0, 0.0, 0
    for first, end in row_blocks(source.shapes[name]):
        block = source.rows(name, kind, first, end)
        sum_of_squares += block.double().square().sum().item()
        max_abs = _largest(max_abs, block.abs().max().item() if block.numel() else 0.0)
        non_finite += int((~block.isfinite()).sum())
    return TensorFigures(math.sqrt(sum_of_squares), max_abs, non_finite)


def compare_tensors(
    first: TensorSource, second: TensorSource, kinds: Sequence[str]
) -> list[TensorDifference]:
    """Compares two sources parameter by parameter, in the order of the first.

    Args:
        first: One of them.
        second: The other; its layout may be another one.
        kinds: What to compare of each parameter, such as ``fp32``.

    Returns:
        A result for each parameter and kind, also for those that one of the two lacks.
    """
    results = []
    for name in dict.fromkeys((*first.shapes, *second.shapes)):
        problem = _problem(first, second, name)
        if problem:
            results.append(TensorDifference(name, "fp32", problem))
            continue
        results += [_compare(first, second, name, kind) for kind in kinds]
    return results


def compare_facts(
    first: Mapping[str, Any], second: Mapping[str, Any], ignored: Sequence[str] = ()
) -> list[str]:
    """Lists the facts that differ, one line each; a mixture domain by domain."""
    lines = []
    for key in dict.fromkeys((*first, *second)):
        one, other = first.get(key), second.get(key)
        if key in ignored or one == other:
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            lines += [f"{key}.{line}" for line in compare_facts(one, other)]
        else:
            lines.append(f"{key}: {_shown(one)} and {_shown(other)}")
    return lines


def _problem(first: TensorSource, second: TensorSource, name: str) -> str | None:
    if name not in second.shapes:
        return "only in the first"
    if name not in first.shapes:
        return "only in the second"
    one, other = first.shapes[name], second.shapes[name]
    return None if one == other else f"shape {list(one)} and {list(other)}"


def _compare(first: TensorSource, second: TensorSource, name: str, kind: str) -> TensorDifference:
    for source, which in ((first, "first"), (second, "second")):
        if kind not in source.kinds:
            return TensorDifference(name, kind, f"not in the {which}")
    shape = first.shapes[name]
    absolute, relative, different = 0.0, 0.0, 0
    for start, end in row_blocks(shape):
        one, other = (source.rows(name, kind, start, end) for source in (first, second))
        unequal = one.contiguous().view(torch.int32) != other.contiguous().view(torch.int32)
        if count := int(unequal.sum()):
            different += count
            block_absolute, block_relative = _distances(one[unequal], other[unequal])
            absolute = _largest(absolute, block_absolute)
            relative = _largest(relative, block_relative)
    return TensorDifference(name, kind, None, absolute, relative, different, math.prod(shape))


def _distances(one: Tensor, other: Tensor) -> tuple[float, float]:
    """Largest absolute and relative distance of elements whose bits differ, in float64."""
    one, other = one.double(), other.double()
    distance = (one - other).abs()
    magnitude = torch.maximum(one.abs(), other.abs())
    ratio = torch.where(magnitude > 0, distance / magnitude, 0.0)  # 0.0 and -0.0 are no distance
    return distance.max().item(), ratio.max().item()


def _largest(one: float, other: float) -> float:
    """The larger value; NaN if either is NaN (the result of ``max`` depends on the order)."""
    return math.nan if math.isnan(one) or math.isnan(other) else max(one, other)


def _shown(value: Any) -> str:
    return "nothing" if value is None else str(value)
