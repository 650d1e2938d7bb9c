"""The optimizer, as far as it is not in the `optimizer` section."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class NeoXArgsOptimizer:
    """Optimizer type, peak learning rate and copies of the ZeRO section."""

    optimizer_type: str | None = None
    """Used when the `optimizer` section names no type: adam or sgd. Not set: adam, that is torch's
    fused AdamW."""

    zero_stage: int | None = None
    """ZeRO stage when there is no `zero_optimization` section; must agree with it where both are
    given."""

    zero_reduce_scatter: bool | None = None
    """Copy of `zero_optimization.reduce_scatter`."""

    zero_contiguous_gradients: bool | None = None
    """Copy of `zero_optimization.contiguous_gradients`."""

    zero_reduce_bucket_size: int | None = None
    """Copy of `zero_optimization.reduce_bucket_size`, in elements."""

    zero_allgather_bucket_size: int | None = None
    """Copy of `zero_optimization.allgather_bucket_size`, in elements."""

    lr: float | None = None
    """Peak learning rate when the `optimizer` section has none. Not set anywhere: 0.001."""
