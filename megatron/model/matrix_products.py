"""Float32 products on a CPU through oneDNN, which torch's ``@`` reaches for bfloat16 only.

MKL, behind ``@``, is slow on AMD processors where the inner dimension is short, and the unembedding
is such a product. `tools/benchmark/loss_chunks.py` prints both. Elsewhere these are plain products.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["linear_product"]


def _has_onednn_linear() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


_HAS_ONEDNN_LINEAR = _has_onednn_linear()


def linear_product(rows: Tensor, weight: Tensor) -> Tensor:
    """``rows @ weight.T``, (n, k) and (m, k), which may be a view -> (n, m); without gradients."""
    if _uses_onednn(rows) and _uses_onednn(weight):
        return torch.ops.mkldnn._linear_pointwise(rows, weight, None, "none", [], "")
    return rows @ weight.t()


def _uses_onednn(tensor: Tensor) -> bool:
    return (
        _HAS_ONEDNN_LINEAR
        and tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and tensor.numel() > 0  # a tensor-parallel rank may hold no token of the vocabulary
    )
