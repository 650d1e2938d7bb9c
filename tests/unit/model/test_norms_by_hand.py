"""Norms of a row that is worked out by hand, and of a row of zeros."""

from __future__ import annotations

import pytest
import torch

from megatron.model.norms import make_norm
from tests.parts import allocated
from tests.unit.model.shapes import small_model

ROW = torch.tensor([3.0, 1.0, -1.0, -3.0])
"""Its mean is 0, its mean square 5, its length the root of 20."""


@pytest.mark.parametrize(
    ("kind", "epsilon", "divisor"),
    [
        ("layernorm", 4.0, 3.0),  # the root of 5 + 4
        ("rmsnorm", 4.0, 3.0),
        ("rmsnorm", 1e-9, 5**0.5),
        ("scalenorm", 1e-5, 20**0.5),
        ("scalenorm", 10.0, 10.0),  # a length below it counts as it
    ],
)
def test_a_row_is_divided_by_its_size(kind, epsilon, divisor):
    config = small_model(hidden_size=4, head_dim=1, norm=kind, norm_epsilon=epsilon)
    norm = allocated(make_norm(config))
    with torch.no_grad():
        for name, parameter in norm.named_parameters():
            parameter.fill_(0.5 if name == "bias" else 2.0)
        shift = 0.5 if kind == "layernorm" else 0.0
        torch.testing.assert_close(norm(ROW), 2 * ROW / divisor + shift)
        torch.testing.assert_close(norm(torch.zeros(4)), torch.full((4,), shift))
