"""What the YAML files say reaches the network."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron.model.gpt2_model import GPT2Model
from megatron.neox_arguments import NeoXArgs, resolve
from megatron.sizing.model_shape import ModelShape, model_shape

Z_LOSS = 0.01


def configured(**values: Any) -> ModelShape:
    keys = {
        "num_layers": 1,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "seq_length": 6,
        "max_position_embeddings": 6,
        "train_iters": 1,
        "train_micro_batch_size_per_gpu": 1,
        **values,
    }
    return model_shape(resolve(NeoXArgs.from_dict(keys)), vocab_size=11, padded_vocab_size=12)


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(11, (2, 7), generator=generator)
    mask = (torch.rand(2, 6, generator=generator) > 0.2).float()
    return tokens[:, :-1], tokens[:, 1:], mask


def gradients(model: GPT2Model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("tied", [True, False])
def test_z_loss_of_the_configuration_adds_the_squared_log_normaliser_to_the_gradient(tied):
    config = configured(z_loss=Z_LOSS, no_weight_tying=not tied)
    tokens, labels, mask = batch()
    model = GPT2Model(config, seed=1)
    model(tokens, labels=labels, loss_mask=mask)[0].backward()

    plain = GPT2Model(configured(no_weight_tying=not tied), seed=1)
    logits = plain(tokens)
    normaliser = logits.logsumexp(dim=-1)
    nll = normaliser - logits.gather(-1, labels[..., None]).squeeze(-1)
    (((nll + Z_LOSS * normaliser.square()) * mask).sum() / mask.sum()).backward()

    wanted, without = gradients(plain), GPT2Model(configured(no_weight_tying=not tied), seed=1)
    without(tokens, labels=labels, loss_mask=mask)[0].backward()
    found = gradients(model)
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-6)
    assert any(not torch.allclose(found[n], g, atol=1e-4) for n, g in gradients(without).items())


def test_validation_losses_are_without_z_loss():
    tokens, labels, mask = batch()
    with torch.no_grad():
        with_it, without = (
            GPT2Model(configured(z_loss=z_loss), seed=1)(tokens, labels=labels, loss_mask=mask)[0]
            for z_loss in (Z_LOSS, 0.0)
        )
    assert torch.equal(with_it, without)
