"""Weights laid out anew give the same results, and are gone afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron.model.cpu import frozen_weights as module
from megatron.model.cpu.frozen_weights import frozen_weights
from megatron.model.gpt2_model import GPT2Model
from tests.unit.model.shapes import small_model

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"no_weight_tying": False},
    "without biases": {"use_bias_in_attn_linear": False, "use_bias_in_mlp": False},
    "gated": {"is_gated_mlp": True, "activation": "swiglu"},
}


def products(model: GPT2Model) -> list[Any]:
    return [m.product for m in model.modules() if getattr(m, "product", None) is not None]


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
@torch.no_grad()
def test_frozen_weights_give_the_same_logits(changes, monkeypatch):
    monkeypatch.setattr(module, "_SMALLEST", 0)
    model = GPT2Model(small_model(**changes), seed=1).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(0.0, 0.5)
    tokens = torch.arange(24).view(2, 12)
    want = model(tokens)
    with frozen_weights(model):
        frozen = products(model)
        got = model(tokens)
        with frozen_weights(model):
            assert products(model) == frozen
        assert products(model) == frozen
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    assert got.shape == (2, 12, 61)
    if torch.backends.mkldnn.is_available():
        assert len(frozen) == 4 * 2 + 1  # four matrices a block, and the output
    assert products(model) == []


def test_small_matrices_and_other_precisions_stay_as_they_are():
    model = GPT2Model(small_model(), seed=1).eval()
    with frozen_weights(model):
        assert products(model) == []
    with frozen_weights(model.bfloat16()):
        assert products(model) == []


def test_an_error_inside_thaws_the_weights(monkeypatch):
    monkeypatch.setattr(module, "_SMALLEST", 0)
    model = GPT2Model(small_model(), seed=1).eval()
    with pytest.raises(RuntimeError, match="inside"), frozen_weights(model):
        raise RuntimeError("inside")
    assert products(model) == []
