"""Where dropout acts, how often, and that it acts in training alone."""

from __future__ import annotations

import pytest
import torch

from megatron.model.positional_embeddings import make_rotary
from megatron.model.transformer import TransformerLayer
from megatron.model.word_embeddings import Embedding
from tests.parts import allocated
from tests.unit.model.shapes import small_model

HALF = {"hidden_dropout": 0.5}


def layer_of_ones(*, is_parallel: bool = False, **changes: float) -> TransformerLayer:
    """A block whose attention adds 1 to every element and whose MLP adds 10."""
    config = small_model(gpt_j_residual=is_parallel, **changes)
    layer = allocated(TransformerLayer(config, make_rotary(config)))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.attention.dense.bias.fill_(1.0)
        layer.mlp.dense_4h_to_h.bias.fill_(10.0)
    return layer


def added_by(layer: TransformerLayer) -> torch.Tensor:
    hidden = torch.full((4, 24, 32), 100.0)
    return layer(hidden).detach() - hidden


@pytest.mark.parametrize("is_parallel", [False, True])
def test_what_attention_and_mlp_add_is_dropped_apart_and_scaled(is_parallel):
    torch.manual_seed(1)
    layer = layer_of_ones(is_parallel=is_parallel, **HALF)
    values, counts = added_by(layer.train()).unique(return_counts=True)
    assert values.tolist() == [0.0, 2.0, 20.0, 22.0]
    assert (counts / counts.sum()).tolist() == pytest.approx([0.25] * 4, abs=0.04)
    assert added_by(layer.eval()).unique().tolist() == [11.0]
    assert added_by(layer_of_ones(is_parallel=is_parallel).train()).unique().tolist() == [11.0]


def test_embeddings_are_dropped_in_training_alone():
    torch.manual_seed(1)
    embedding = allocated(Embedding(small_model(**HALF)))
    with torch.no_grad():
        embedding.word_embeddings.weight.fill_(1.0)
    tokens = torch.zeros(4, 24, dtype=torch.int64)
    values, counts = embedding.train()(tokens).unique(return_counts=True)
    assert values.tolist() == [0.0, 2.0]
    assert counts[0] / counts.sum() == pytest.approx(0.5, abs=0.05)
    assert embedding.eval()(tokens).unique().tolist() == [1.0]


def test_attention_drops_positions_that_it_looks_at():
    """Values of 1 and weights that are even: position i adds what it keeps of i + 1 positions."""
    torch.manual_seed(1)
    layer = layer_of_ones(attention_dropout=0.5)
    with torch.no_grad():
        fused = layer.attention.query_key_value.bias.view(4, 3, 8)
        fused[:, 2] = 1.0
        layer.attention.dense.bias.zero_()
        layer.mlp.dense_4h_to_h.bias.zero_()
        layer.attention.dense.weight.copy_(torch.eye(32))
    kept = added_by(layer.train())
    assert kept[:, 0].unique().tolist() == [0.0, 2.0]
    assert kept[:, 1].unique().tolist() == [0.0, 1.0, 2.0]
    assert kept[:, 23].mean().item() == pytest.approx(1.0, abs=0.1)
    torch.testing.assert_close(added_by(layer.eval()), torch.ones(4, 24, 32))
