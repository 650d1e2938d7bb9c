"""Rotation angles against those of transformers, for every type of scaling."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron.model.positional_embeddings import RotaryTable
from megatron.model.rope_scaling import attention_factor, inverse_frequencies
from megatron.neox_arguments.sections.model import RopeScaling
from tools.hf.settings import resolve_model_fields

transformers = pytest.importorskip("transformers")

LLAMA_3 = {
    **{"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192},
    **{"low_freq_factor": 1.0, "high_freq_factor": 4.0},
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama 3.1": LLAMA_3,
    "llama 3.2": {**LLAMA_3, "factor": 32.0},
    "llama 3, other borders": {**LLAMA_3, "low_freq_factor": 2.0, "high_freq_factor": 32.0},
    "yarn": YARN,
    "yarn, factor 1": {**YARN, "factor": 1.0},
    "yarn, attention factor": {**YARN, "attention_factor": 0.75},
    "yarn, other borders": {**YARN, "beta_fast": 8.0, "beta_slow": 2.0},
    "yarn, not rounded": {**YARN, "truncate": False},
    "yarn, deepseek": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5},
    "yarn, half of deepseek": {**YARN, "mscale": 1.5},
    "yarn, short texts": {**YARN, "original_max_position_embeddings": 4},
    "yarn, one border": {**YARN, "beta_fast": 1.0, "beta_slow": 1.0, "truncate": False},
}
LIMIT = 2048


def their_table(scaling: dict[str, Any], *, head_dim: int, theta: float, length: int) -> Any:
    """cos and sin of a new Llama network for one text, (length, head_dim)."""
    config = transformers.LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=LIMIT,
        rope_parameters={**scaling, "rope_theta": theta},
    )
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    cos, sin = rotary(torch.zeros(1), torch.arange(length)[None])
    return rotary.inv_freq, cos[0], sin[0]


@pytest.mark.parametrize(("head_dim", "theta"), [(64, 10000), (128, 500000), (20, 99.5)])
@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_and_angles_are_those_of_transformers(name, head_dim, theta):
    written = SCALINGS[name]
    fields = {"hidden_size": 4 * head_dim, "num_layers": 1, "num_attention_heads": 4}
    fields |= {"max_position_embeddings": LIMIT, "pos_emb": "rotary", "rotary_emb_base": theta}
    scaling = resolve_model_fields({**fields, "rope_scaling": written}).model.rope_scaling
    assert scaling is not None
    assert scaling.written() == written
    for length in (64, LIMIT, 3000) if written["rope_type"] == "dynamic" else (64,):
        wanted, cos, sin = their_table(written, head_dim=head_dim, theta=theta, length=length)
        found = inverse_frequencies(head_dim, theta, scaling, length=length, max_positions=LIMIT)
        torch.testing.assert_close(found.float(), wanted, rtol=2e-6, atol=0)
        table = RotaryTable(head_dim, theta, scaling=scaling, max_positions=LIMIT)
        own_cos, own_sin = table.get(length, like=torch.zeros(()))
        # their angles are float32's: at position p they are off by p times 1e-7
        rounding = {"rtol": 0, "atol": 1e-6 + 3e-7 * length}
        torch.testing.assert_close(own_cos, cos, **rounding)
        half = head_dim // 2
        torch.testing.assert_close(own_sin[:, half:], sin[:, half:], **rounding)
        torch.testing.assert_close(-own_sin[:, :half], sin[:, :half], **rounding)


def test_the_factor_of_cosines_is_yarns_alone():
    linear = RopeScaling(rope_type="linear", factor=4.0)
    assert attention_factor(linear) == attention_factor(None) == 1.0
    yarn = RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=8)
    assert attention_factor(yarn) == pytest.approx(1.1386294)
