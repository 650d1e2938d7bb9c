"""A linear layer whose parameters know their initial value, shape and sharding."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from megatron.model.init_functions import zeros
from megatron.model.parameters import InitMethod, make_parameter

__all__ = ["Linear"]


class Linear(nn.Module):
    """``x @ weight.T + bias`` with weight (out_features, in_features)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        init_method: InitMethod,
        bias: bool,
        tp_dim: int | None = None,
    ):
        super().__init__()
        self.weight = make_parameter(
            out_features, in_features, init_method=init_method, tp_dim=tp_dim
        )
        self.bias = (
            make_parameter(
                out_features,
                init_method=zeros,
                tp_dim=0 if tp_dim == 0 else None,
                has_weight_decay=False,
            )
            if bias
            else None
        )

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(features, self.weight, self.bias)
