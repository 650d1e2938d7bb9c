"""Float32 products on a CPU through oneDNN, which torch's ``@`` reaches for bfloat16 only.

MKL, behind ``@``, is slow on AMD processors where the inner dimension is short, and the unembedding
is such a product. `tools/benchmark/loss_chunks.py` prints both. Elsewhere these are plain products.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["linear_product", "transposed"]


def _has_onednn_linear() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


_HAS_ONEDNN_LINEAR = _has_onednn_linear()


def linear_product(rows: Tensor, weight: Tensor) -> Tensor:
    """``rows @ weight.T``, (n, k) and (m, k) -> (n, m); no gradient flows through it."""
    if _uses_onednn(rows) and weight.is_contiguous():
        return torch.ops.mkldnn._linear_pointwise(rows, weight, None, "none", [], "")
    return rows @ weight.t()


def transposed(weight: Tensor) -> Tensor:
    """``weight.T`` as `linear_product` likes it: a contiguous copy for oneDNN, else a view."""
    return weight.t().contiguous() if _uses_onednn(weight) else weight.t()


def _uses_onednn(tensor: Tensor) -> bool:
    return _HAS_ONEDNN_LINEAR and tensor.dtype == torch.float32 and tensor.device.type == "cpu"
