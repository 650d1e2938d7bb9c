"""Checkpoints as GPT-NeoX writes them have the logits of the model that they were made of."""

from __future__ import annotations

import pytest
import torch

from megatron.checkpoint.neox.reader import NeoxReader
from megatron.model.gpt2_model import GPT2Model
from tests.neox_folder import random_weights, write_neox_folder
from tools.hf.network import filled_model
from tools.hf.settings import RunSettings, resolve_model_fields

PYTHIA = {
    "num_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "seq_length": 16,
    "max_position_embeddings": 16,
    "pos_emb": "rotary",
    "rotary_pct": 0.25,
    "gpt_j_residual": True,
    "no_weight_tying": True,
    "make_vocab_size_divisible_by": 8,
}
SEQUENTIAL = {**PYTHIA, "gpt_j_residual": False, "pos_emb": "learned", "no_weight_tying": False}
LLAMA = {
    **PYTHIA,
    "gpt_j_residual": False,
    "rotary_pct": 1.0,
    "norm": "rmsnorm",
    "activation": "swiglu",
    "mlp_inner_size": 24,
    "use_bias_in_attn_linear": False,
    "use_bias_in_mlp": False,
}
GROUPED = {**LLAMA, "num_attention_heads": 8, "num_kv_heads": 4}
GEGLU = {**PYTHIA, "activation": "geglu", "mlp_inner_size": 24, "gpt_j_tied": True}
NETWORKS = {
    "pythia": PYTHIA,
    "sequential": SEQUENTIAL,
    "llama": LLAMA,
    "grouped": GROUPED,
    "geglu": GEGLU,
}
VOCAB_SIZE = 61


def shape_of(fields):
    return RunSettings(resolve_model_fields(fields).to_dict()).shape(VOCAB_SIZE)


@pytest.mark.parametrize("stages", [True, False], ids=["stages", "sequential"])
@pytest.mark.parametrize("renamed", [True, False], ids=["2024", "before"])
@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_those_of_the_model_for_every_number_of_parts(
    tmp_path, name, parts, renamed, stages
):
    shape = shape_of(NETWORKS[name])
    model = GPT2Model(shape, seed=0).eval()
    weights = random_weights(model)
    folder = write_neox_folder(
        tmp_path, weights, shape, parts=parts, renamed=renamed, stages=stages, divisor=8
    )
    read = filled_model(shape, NeoxReader(folder, shape).read_logical)
    tokens = torch.arange(12)[None] * 5 % VOCAB_SIZE
    with torch.no_grad():
        assert torch.allclose(read(tokens), model(tokens), atol=1e-6)
